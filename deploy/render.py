#!/usr/bin/env python3
"""Renders the Kubernetes manifests: deploy/render.py --image IMAGE | kubectl apply -f -

In: the templates beside this file and the values below, each with a flag of its name. Out: one YAML
stream on stdout. The alerts of deploy/prometheus/rules.yaml come along as a PrometheusRule.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template

DEPLOY_DIR = Path(__file__).resolve().parent
RULE_HEAD = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {name}
  labels:
    app.kubernetes.io/name: tidemill
spec:
"""


@dataclass(frozen=True)
class Values:
    """What differs from one deployment to the next."""

    image: str
    name: str = "tidemill"
    models_claim: str = "models"
    min_replicas: int = 1
    max_replicas: int = 4
    queue_depth_target: int = 4
    cpu: int = 4
    memory: str = "8Gi"
    monitoring_namespace: str = "monitoring"


def render(values: Values) -> str:
    """Return every manifest as one stream of YAML documents.

    Raises: KeyError for a template that asks for a value which is not there.
    """
    substitutes = dataclasses.asdict(values)
    documents = [
        Template(path.read_text("utf-8")).substitute(substitutes)
        for path in sorted((DEPLOY_DIR / "kubernetes").glob("*.yaml"))
    ]
    rules = (DEPLOY_DIR / "prometheus" / "rules.yaml").read_text("utf-8")
    indented = "".join(f"  {line}" for line in rules.splitlines(keepends=True))
    return "---\n".join([*documents, RULE_HEAD.format(name=values.name) + indented])


def main() -> None:
    """Read the flags and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for field in dataclasses.fields(Values):
        is_required = field.default is dataclasses.MISSING
        kind = str if is_required else type(field.default)
        default = None if is_required else field.default
        parser.add_argument(f"--{field.name}", type=kind, default=default, required=is_required)
    sys.stdout.write(render(Values(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
