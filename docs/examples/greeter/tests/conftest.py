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


@pytest.fixture(scope="session")
def keeper_eif(nitro_eif, nitro_kms, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    openssl = ["pkg-config", "--static", "--libs", "libssl"]
    libraries = subprocess.run(openssl, check=True, capture_output=True, text=True).stdout.split()
    program = ["-o", root / "keeper", APP / "keeper.c"]
    subprocess.run(["cc", "-O2", "-Wall", "-static", *program, *libraries], check=True)
    # What the image trusts is measured with it. In production it has Amazon's roots.
    return nitro_eif(directory=root, cmd=["/keeper"], name="keeper", trust_ca=nitro_kms.ca)


@pytest.fixture(scope="session")
def keeper(nitro_enclave_factory, nitro_kms, keeper_eif):
    return nitro_enclave_factory(keeper_eif, listen_port=[nitro_kms.parent_port])


@pytest.fixture
def greeter(nitro_enclave, greeter_eif):
    return nitro_enclave(greeter_eif)
