"""The name that marks a request as the watchdog's: known to the watchdog and to the models."""

PROBE_MARK = "tidemill_probe"
