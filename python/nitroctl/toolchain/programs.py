# SPDX-License-Identifier: MIT
"""The programs that an enclave needs, made without a question for those who have none."""

from __future__ import annotations

from pathlib import Path

from nitroctl.base import progress
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import bundle, packages, plugin, plugin_build, tree


def make(jobs: int | None = None) -> tuple[Path, Path]:
    """QEMU and the backend, each made if it did not come with nitroctl and is not there."""
    return plugin.prebuilt() or bundle.qemu() or _qemu(jobs), tree.build_backend(jobs=jobs)


def _qemu(jobs: int | None) -> Path:
    """The distribution's QEMU with the plugin where that is supported; else a QEMU of our own."""
    if packages.distribution_qemu():
        try:
            return plugin_build.build_plugin(jobs=jobs).launcher
        except NitroError as e:
            progress.say(f"{e}")
            progress.say("building a QEMU instead")
    return tree.build_qemu(tree.BuildOptions(jobs=jobs)).qemu
