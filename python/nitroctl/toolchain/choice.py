# SPDX-License-Identifier: MIT
"""The QEMU that an enclave gets, whoever asks. A plugin that no longer fits, since the distribution has
updated its QEMU, is built again; what that takes is imported only then.
"""

from __future__ import annotations

from pathlib import Path

from nitroctl.base import progress
from nitroctl.base.arch import Arch
from nitroctl.base.errors import NitroError
from nitroctl.toolchain import bundle, plugin
from nitroctl.toolchain.plugin import Kind


def choose(kind: Kind | None = None, arch: Arch = "x86_64") -> Path:
    """The QEMU to run for an enclave of that architecture, whoever asks: the plugin's for the installed QEMU;
    else the one that came with nitroctl; else the tree build's; or as `kind` says.

    A plugin that was built and whose QEMU was updated is built again; if that fails, another QEMU stands in
    unless `kind` forbids it. Raises NitroError with the command that provides what is missing.
    """
    built = plugin.manifest(arch) if kind in (None, "plugin") else None
    if built is None:
        return plugin.in_use(kind, arch)
    if found := plugin.fitting(arch):
        return found
    progress.say(f"{plugin.misfit(built)}: building it again")
    from nitroctl.toolchain import plugin_build

    try:
        return plugin_build.build_plugin(Path(built.qemu)).launcher
    except NitroError as e:
        if kind == "plugin":
            raise
        try:
            own = plugin.in_use(None, arch)
        except NitroError:
            raise e from None
        what = "the tree build" if own != bundle.qemu(arch) else "the one that came with nitroctl"
        progress.say(f"that failed ({str(e).splitlines()[0]}): using {what}")
        return own
