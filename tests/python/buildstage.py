# SPDX-License-Identifier: MIT
"""A small stand-in for QEMU and a checkout of ours, on which `nitroctl build` runs: real tar, patch and
ninja, our own configure and compiler. Its build.ninja "compiles" by copying, and its emulator is a shell
script that knows one machine. No tests; QEMU itself is built by `make check`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

from nitroctl.toolchain import places, source, tree
from nitroctl.toolchain.tree import BuildOptions, build_qemu

PATCH = """\
SPDX-License-Identifier: GPL-2.0-or-later

--- a/Kconfig
+++ b/Kconfig
@@ -1,3 +1,4 @@
 source target/Kconfig
 source hw/Kconfig
+source nitro-overlay/Kconfig
 source semihosting/Kconfig
--- a/meson.build
+++ b/meson.build
@@ -1,3 +1,4 @@
 subdir('gdbstub')
 subdir('hw')
+subdir('nitro-overlay/hw')
 subdir('tests')
"""

# Stops at the step that $STOP_AT names, after saying so in $STOPPED; everything that runs is in $STEPS.
CONFIGURE = """#!/bin/sh
set -e
echo "configure $*" >> "$STEPS"
src=$(dirname "$0")
[ "$STOP_AT" = configure ] && { echo stopped > "$STOPPED"; exec sleep 1000; }
[ -e "$src/broken-configure" ] && { echo checking; echo "ERROR: Dependency gnutls not found"; exit 1; }
grep -q nitro-overlay/hw "$src/meson.build"
mkdir -p pyvenv/bin meson-info
ln -s "$(command -v python3)" pyvenv/bin/python3
cat > compile <<'END'
#!/bin/sh
echo "compile $2" >> "$STEPS"
[ "$STOP_AT" = "$2" ] && { printf half > "$2"; echo stopped > "$STOPPED"; exec sleep 1000; }
if grep -q oops "$1"; then
    echo "$1:1:1: error: 'oops' undeclared"
    exit 1
fi
cp "$1" "$2"
END
cat > link <<'END'
#!/bin/sh
echo "link $1" >> "$STEPS"
{
    echo '#!/bin/sh'
    echo '[ "$STOP_AT" = product ] && { echo stopped > "$STOPPED"; exec sleep 1000; }'
    echo "cat <<'MACHINES'"
    cat nitro.o
    echo MACHINES
} > "$1"
chmod +x "$1"
END
chmod +x compile link
cat > build.ninja <<END
rule cc
  command = ./compile \\$in \\$out
rule ld
  command = ./link \\$out
build nitro.o: cc $src/nitro-overlay/hw/nitro.c | $src/nitro-overlay/include/nitro.h
build other.o: cc $src/other.c
build nitro-overlay/tests/qtest/nitro-test: cc $src/nitro-overlay/tests/qtest/nitro-test.c
build qemu-system-x86_64: ld | nitro.o other.o
build build.ninja: phony
END
cat > meson-info/intro-targets.json <<END
[{"type": "executable", "defined_in": "$src/meson.build", "filename": ["$PWD/qemu-system-x86_64"]},
 {"type": "executable", "defined_in": "$src/nitro-overlay/tests/qtest/meson.build",
  "filename": ["$PWD/nitro-overlay/tests/qtest/nitro-test"]},
 {"type": "static library", "defined_in": "$src/nitro-overlay/hw/meson.build", "filename": ["$PWD/x.a"]}]
END
"""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def make_qemu(folder: Path, version: str = "10.0.99") -> Path:
    write(folder / "VERSION", version + "\n")
    write(folder / "Kconfig", "source target/Kconfig\nsource hw/Kconfig\nsource semihosting/Kconfig\n")
    write(folder / "meson.build", "subdir('gdbstub')\nsubdir('hw')\nsubdir('tests')\n")
    write(folder / "other.c", "other\n")
    write(folder / "roms" / "edk2" / "large", "x" * 1000)
    write(folder / "configure", CONFIGURE, 0o755)
    for name in source.FIRMWARE_FILES:
        write(folder / "pc-bios" / name, f"firmware {name}")
    return folder


def make_tarball(tmp_path: Path, tree: Path) -> Path:
    tarball = tmp_path / "qemu-10.0.99.tar.xz"
    with tarfile.open(tarball, "w:xz") as tar:
        tar.add(tree, arcname="qemu-10.0.99")
    return tarball


class Stage:
    """A checkout of ours, a QEMU, a cache, and the list of steps that ran."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp = tmp_path
        self.checkout = tmp_path / "checkout"
        self.steps_file = tmp_path / "steps"
        self.tree = make_qemu(tmp_path / "qemu")
        self.tarball = make_tarball(tmp_path, self.tree)
        write(self.checkout / "graft" / "qemu-10.0.patch", PATCH)
        write(self.checkout / "Kconfig", "config NITRO\n")
        write(self.checkout / "hw" / "nitro.c", "nitro-enclave   AWS Nitro Enclave\n")
        write(self.checkout / "include" / "nitro.h", "header\n")
        write(self.checkout / "tests" / "qtest" / "nitro-test.c", "test\n")

    def steps(self) -> list[str]:
        """What ran since the last call, configure without its options."""
        lines = self.steps_file.read_text().splitlines() if self.steps_file.exists() else []
        self.steps_file.unlink(missing_ok=True)
        return ["configure" if line.startswith("configure ") else line for line in lines]

    def build(self, **options: object) -> tree.Manifest:
        return build_qemu(BuildOptions(**{"source": self.tarball, **options}))  # type: ignore[arg-type]


def use_stage(stage: Stage, setattr: Callable[[object, str, object], None]) -> None:
    """Let nitroctl take the stage's checkout for its own sources, and not look at this host's tools."""
    for module in (tree, source):
        setattr(module, "source_root", lambda: stage.checkout)
        setattr(module, "toolchain", lambda needs: {"cc": "12.2.0"})
    # What is linked into the environment that runs the tests is none of theirs.
    setattr(places, "default_prefix", lambda: stage.checkout.parent / "prefix")
