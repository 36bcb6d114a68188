"""Deploys a Serve config on a Ray cluster of its own, as the operator would.

`python -m tests.k8s.deploy FILE ANSWER` deploys FILE, sends one chat request and writes the HTTP answer to
ANSWER. The cluster ends with this process.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import ray
import yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve.schema import ServeDeploySchema

READY_SECONDS = 150.0
QUESTION = "Solve 2x + 3 = 7"


def main() -> None:
    """Deploy the config, ask, write the answer and shut the cluster down."""
    config = ServeDeploySchema.model_validate(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")))
    ray.init(address="local", num_cpus=4, include_dashboard=False, configure_logging=False)
    try:
        client = serve_start(
            http_options=config.http_options.model_dump(),
            grpc_options=config.grpc_options.model_dump(),
            proxy_location=config.proxy_location,
        )
        client.deploy_apps(config)
        answer = _ask(f"http://127.0.0.1:{config.http_options.port}")
        Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _ask(url: str) -> dict[str, Any]:
    deadline = time.monotonic() + READY_SECONDS
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        while not _is_ready(client):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {READY_SECONDS} s: {serve.status()}")
            time.sleep(0.5)
        model = client.get("/v1/models").json()["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
        response = client.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        content = response.json()
        assert isinstance(content, dict)
        return content


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
