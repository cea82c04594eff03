# SPDX-License-Identifier: MIT
"""The application's image, made once, and a running enclave for each test."""

import subprocess
from pathlib import Path

import pytest

APP = Path(__file__).parents[1] / "app"


@pytest.fixture(scope="session")
def greeter_eif(nitro_eif, tmp_path_factory):
    # Yours is more likely a container image: nitro_eif(image="app.tar"), from `docker save` or a registry.
    root = tmp_path_factory.mktemp("root")
    subprocess.run(["cc", "-O2", "-Wall", "-static", "-o", root / "greeter", APP / "greeter.c"], check=True)
    return nitro_eif(directory=root, cmd=["/greeter"], name="greeter")


@pytest.fixture
def greeter(nitro_enclave, greeter_eif):
    return nitro_enclave(greeter_eif)
