"""The image of the server and its compose file, as far as they can be read without Docker."""

import pathlib
import re

import yaml

from srum_jax import serve

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
IMAGE = (LAUNCH / "Dockerfile.serve").read_text()


def test_what_is_copied_is_there_and_not_ignored():
    ignored = (LAUNCH / "Dockerfile.serve.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert ignored[1] == "*"
    for line in re.findall(r"^COPY (.*)$", IMAGE, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert any(source == one or source.startswith(f"{one}/") for one in kept), source


def test_it_runs_as_an_ordinary_user_and_asks_for_a_key():
    assert re.search(r"^USER 1000$", IMAGE, re.MULTILINE)
    entry = re.search(r"^ENTRYPOINT \[(.*)\]$", IMAGE, re.MULTILINE)[1]
    python, m, module, *options = [part.strip().strip('"') for part in entry.split(",")]
    assert (python, m, module) == ("python", "-m", "srum_jax.serve")
    told = serve.parser().parse_args([*options, "--warm"])
    assert (told.host, told.api_key_env, told.warm) == ("0.0.0.0", "SRUM_KEY", True)


def test_compose_keeps_it_small():
    told = yaml.safe_load((LAUNCH / "compose.serve.yaml").read_text())["services"]["srum"]
    assert (LAUNCH / told["build"]["context"]).resolve() == ROOT
    assert (ROOT / told["build"]["dockerfile"]).exists()
    assert told["user"] == "1000" and told["read_only"] and told["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in told["ports"])
    assert "SRUM_KEY" in told["environment"]
