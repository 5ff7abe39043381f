"""A repository as a user grew it: versions under a policy, an ensemble of the user's own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from tidemill.frontends.triton.deploy import DeployRequest, deploy

SHOUT_PY = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.shout(request) for request in requests]

    def shout(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        loud = np.array([each.upper() for each in text.reshape(-1)], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOUD", loud)])
"""
SHOUT_CONFIG = """
name: "shout" backend: "python"
input { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] }
output { name: "LOUD" data_type: TYPE_STRING dims: [ -1 ] }
instance_group { kind: KIND_CPU }
"""
MINE_CONFIG = """
name: "mine" platform: "ensemble"
input [ { name: "ask" data_type: TYPE_STRING dims: [ 1 ] },
        { name: "length" data_type: TYPE_INT32 dims: [ 1 ] } ]
output { name: "answer" data_type: TYPE_STRING dims: [ -1 ] }
ensemble_scheduling { step [
  { model_name: "plain" model_version: -1
    input_map { key: "text_input" value: "ask" } input_map { key: "max_tokens" value: "length" }
    output_map { key: "text_output" value: "said" } },
  { model_name: "shout" model_version: -1
    input_map { key: "TEXT" value: "said" } output_map { key: "LOUD" value: "answer" } } ] }
"""


def write_users_repository(repository: Path, engine: Path) -> None:
    """Lay out a model in two versions, and an ensemble of the user's own around a third."""
    versions = deploy(DeployRequest(engine, repository, "versions", link="symbolic")).model_dir
    shutil.copytree(versions / "1", versions / "3", symlinks=True)
    config = versions / "config.pbtxt"
    config.write_text(config.read_text() + "version_policy { specific { versions: [ 1, 3 ] } }\n")
    shutil.copytree(versions / "1", versions / "2", symlinks=True)
    wish = DeployRequest(engine, repository, "plain", is_decoupled=False, max_batch_size=0)
    deploy(replace(wish, link="hard"))
    for name, text in (("shout", SHOUT_CONFIG), ("mine", MINE_CONFIG)):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(text)
    (repository / "shout" / "1" / "model.py").write_text(SHOUT_PY)
