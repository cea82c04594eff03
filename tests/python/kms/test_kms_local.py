# SPDX-License-Identifier: MIT
"""`nitroctl.kms.local.Kms` as a program uses it, without a client's protocol; and the certificate of its
port: one that is damaged, of another region or too old is an error that says what to do."""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nitroctl.base.errors import NitroError, UsageError
from nitroctl.base.instants import UTC
from nitroctl.kms import tls
from nitroctl.kms.local import Kms

REGION = "eu-central-1"


def test_one_life_and_what_goes_with_it(tmp_path: Path) -> None:
    kms = Kms(tmp_path / "kms", listen=None, tls=False)
    with pytest.raises(UsageError, match="has not been started"):
        _ = kms.service
    with kms.start():
        with pytest.raises(UsageError, match="can be started only once"):
            kms.start()
        with pytest.raises(UsageError, match="no TCP port"):
            _ = kms.url
        assert "AWS_ENDPOINT_URL_KMS" not in kms.environment()
        assert kms.parent_port == f"8000={kms.socket}" and kms.socket.is_socket()
        with pytest.raises(TimeoutError, match="no request for Decrypt came within 0 s"):
            kms.wait_event("Decrypt", timeout=0)
        with pytest.raises(UsageError, match="Nonsense is not an operation of this local KMS"):
            kms.call("Nonsense")
        with pytest.raises(UsageError, match="neither JSON nor bytes"):
            kms.call("Encrypt", KeyId="alias/x", Plaintext={"a set"})
        with pytest.raises(NitroError, match=r"^Encrypt: NotFound: "):
            kms.encrypt("alias/x", b"secret")
    assert not kms.socket.exists()


class TestCertificate:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tls.ca_file(tmp_path, REGION).parent

    def error(self, store: Path, region: str = REGION) -> NitroError:
        with pytest.raises(NitroError) as caught:
            tls.context(store, region)
        assert f"remove {store / tls.FOLDER}" in (caught.value.hint or "")
        return caught.value

    @pytest.mark.parametrize("file", [tls.CERTIFICATE, tls.KEY])
    def test_damaged(self, folder: Path, file: str) -> None:
        tls.context(folder.parent, REGION)
        (folder / file).write_bytes((folder / file).read_bytes()[:100])
        assert f"certificate in {folder} cannot be used" in str(self.error(folder.parent))
        (folder / file).unlink()
        assert "cannot be used" in str(self.error(folder.parent))

    def test_of_another_region(self, folder: Path) -> None:
        text = str(self.error(folder.parent, "us-gov-west-1"))
        assert text.endswith("is not for kms.us-gov-west-1.amazonaws.com")

    def test_too_old(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The clock is one second behind the end that openssl reads."""
        argv = ["openssl", "x509", "-in", str(folder / tls.CERTIFICATE), "-noout", "-enddate"]
        text = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
        end = datetime.strptime(text, "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)

        def clock(seconds: int) -> Any:
            return SimpleNamespace(now=lambda zone: end + timedelta(seconds=seconds))

        monkeypatch.setattr(tls, "datetime", clock(0))
        tls.context(folder.parent, REGION)
        monkeypatch.setattr(tls, "datetime", clock(1))
        assert str(self.error(folder.parent)).endswith("has expired")

    def test_where_nothing_can_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(NitroError, match="cannot make the TLS certificate in .*: Not a directory"):
            tls.ca_file(tmp_path / "file", REGION)
