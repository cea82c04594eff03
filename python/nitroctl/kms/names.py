# SPDX-License-Identifier: MIT
"""ARNs, callers, and the wildcard patterns of policies. No policy is evaluated here."""

from __future__ import annotations

import re
from dataclasses import dataclass

ACCOUNT = re.compile(r"[0-9]{12}")
# The path and the name of an IAM user or role.
_IAM = re.compile(
    r"arn:(aws[a-z-]*):iam::([0-9]{12}):(user|role)/((?:[\x21-\x7e]+/)?[\w+=,.@-]{1,64})", re.ASCII
)
_SESSION = re.compile(
    r"arn:(aws[a-z-]*):sts::([0-9]{12}):assumed-role/([\w+=,.@-]{1,64})/([\w+=,.@-]{2,64})", re.ASCII
)
_ROOT = re.compile(r"arn:(aws[a-z-]*):iam::([0-9]{12}):root")
SESSION_NAME = re.compile(r"[\w+=,.@-]{2,64}", re.ASCII)


def like(pattern: str, text: str) -> bool:
    """Whether `text` matches a pattern with IAM's wildcards: `*` for any characters, `?` for one. Takes at
    most O(len(pattern) * len(text)) time."""
    if pattern == "*" or ("*" not in pattern and "?" not in pattern):
        return pattern in ("*", text)
    at = here = 0
    star, resume = -1, 0
    while here < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, here
            at += 1
        elif at < len(pattern) and (pattern[at] == "?" or pattern[at] == text[here]):
            at += 1
            here += 1
        elif star >= 0:
            resume += 1
            at, here = star + 1, resume
        else:
            return False
    return pattern[at:].strip("*") == ""


def arn_like(pattern: str, text: str) -> bool:
    """Match each of an ARN's six parts on its own, as ArnEquals and ArnLike do."""
    wanted, found = pattern.split(":", 5), text.split(":", 5)
    return len(wanted) == len(found) == 6 and all(map(like, wanted, found))


@dataclass(frozen=True)
class Caller:
    """Who makes a request. `arn` is that of the user or role; `session` is the name of a role's session."""

    arn: str
    session: str | None = None

    @property
    def account(self) -> str:
        return self.arn.split(":")[4]

    @property
    def is_root(self) -> bool:
        return _ROOT.fullmatch(self.arn) is not None

    @property
    def name(self) -> str:
        return self.arn.rpartition("/")[2] if "/" in self.arn else "root"

    @property
    def full_arn(self) -> str:
        """The ARN that AWS's messages and events show."""
        if self.session is None:
            return self.arn
        partition = self.arn.split(":")[1]
        return f"arn:{partition}:sts::{self.account}:assumed-role/{self.name}/{self.session}"

    @property
    def principals(self) -> tuple[str, ...]:
        """Every ARN by which a policy can name this caller, except its account's."""
        return (self.arn,) if self.session is None else (self.arn, self.full_arn)

    @property
    def root_arn(self) -> str:
        return f"arn:{self.arn.split(':')[1]}:iam::{self.account}:root"


def parse_caller(arn: str, session: str | None = None) -> Caller | None:
    """The caller that an ARN of a user, a role, a role's session or an account stands for; None for any other
    text."""
    if match := _SESSION.fullmatch(arn):
        partition, account, role, named = match.groups()
        return Caller(f"arn:{partition}:iam::{account}:role/{role}", named)
    if match := _IAM.fullmatch(arn):
        return Caller(arn, session if match[3] == "role" else None)
    return Caller(arn) if _ROOT.fullmatch(arn) else None


def principal(text: str) -> str | None:
    """A policy's principal in the form in which it is compared: an account id becomes the account's ARN. None
    if the text is not a principal."""
    if text == "*":
        return text
    if ACCOUNT.fullmatch(text):
        return f"arn:aws:iam::{text}:root"
    return text if any(form.fullmatch(text) for form in (_IAM, _SESSION, _ROOT)) else None
