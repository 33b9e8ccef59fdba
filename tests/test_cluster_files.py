"""cluster.yaml against the schema that `ray up` checks it with."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import ray.autoscaler
import yaml

REPOSITORY = Path(__file__).parent.parent


def test_cluster_yaml_is_what_ray_up_accepts() -> None:
    schema = json.loads((Path(ray.autoscaler.__path__[0]) / "ray-schema.json").read_text())
    config = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
