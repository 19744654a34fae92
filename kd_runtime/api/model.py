"""The base of every API model: frozen, camelCase names, unknown fields refused; and the types that many models share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from kd_runtime.api.classes import Unkeyed

GROUP = "kubedistill.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

_SPELLED = {"url": "URL", "gpu": "GPU", "uid": "UID", "sha256": "SHA256", "cidrs": "CIDRs", "wandb": "WandB"}


def camel_case(attribute: str) -> str:
    """The manifest's name of an attribute: ``top_k`` -> ``topK``, ``base_url`` -> ``baseURL``."""
    first, *rest = attribute.split("_")
    return first + "".join(_SPELLED.get(word, word.capitalize()) for word in rest)


@dataclass(frozen=True)
class Rule:
    """A condition on one object, in CEL: the CRD carries its text and `kd lint` evaluates the same text.

    In a string's annotation it is a condition on that string. ``field`` is the field below the object that the
    message is about ("" for the object itself). ``message`` is
    "problem; remedy". A rule that mentions ``oldSelf`` is about an update.
    """

    cel: str
    message: str
    field: str = ""
    repeats: bool = True
    """Whether the API server's message about a string may repeat it; not where it holds a secret."""

    @property
    def transition(self) -> bool:
        """True for a rule that compares with the object before an update."""
        return "oldSelf" in self.cel


class Model(BaseModel):
    """An object of the API."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=camel_case,
        populate_by_name=True,
        use_attribute_docstrings=True,
        validate_default=False,
        protected_namespaces=(),
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of attributes of which one at most may be set: a runtime's defaults fill in only what the user chose."""


@dataclass(frozen=True)
class Remedy:
    """In a field's annotation: what to do where its value is refused, if the general advice does not help."""

    text: str


@dataclass(frozen=True)
class ListMap:
    """In a list's annotation: its items are told apart by ``key``, so that several writers may each set theirs."""

    key: str


def exactly_one(*fields: str) -> Rule:
    """The rule that exactly one of ``fields`` is set."""
    present = ", ".join(f"has(self.{field})" for field in fields)
    cel = f"[{present}].exists_one(set, set)"
    return Rule(cel, f"exactly one of {', '.join(fields)} must be set; add or remove one")


def at_most_one(first: str, second: str) -> Rule:
    """The rule that ``first`` and ``second`` are not both set."""
    return Rule(
        f"!has(self.{first}) || !has(self.{second})", f"{first} and {second} exclude each other; remove one", second
    )


def immutable(*fields: str, remedy: str = "create a job under another name") -> tuple[Rule, ...]:
    """The rules that none of ``fields`` (names, or dotted paths) changes after creation.

    Field by field, since a comparison of whole specs would not say which one changed.
    """
    return tuple(Rule(unchanged(field), f"cannot change after creation; {remedy}", field) for field in fields)


def unchanged(path: str, new: str = "self", old: str = "oldSelf") -> str:
    """CEL: the field at ``path`` below ``new`` and ``old`` is absent in both, or present and equal."""
    before, after = _present(old, path), _present(new, path)
    return f"({after}) == ({before}) && (!({after}) || {new}.{path} == {old}.{path})"


def _present(root: str, path: str) -> str:
    words = path.split(".")
    return " && ".join(f"has({root}.{'.'.join(words[: end + 1])})" for end in range(len(words)))


STAGE_NAME = r"^[a-z][a-z0-9]{0,15}$"
RESERVED_NAMES = "teacher|plan|dataset|y|n|on|off|yes|no|true|false"

StageName = Annotated[
    str,
    Field(min_length=1, max_length=16, pattern=STAGE_NAME),
    Remedy("use at most 16 lower-case letters and digits, a letter first"),
]
"""A stage's or teacher's name."""
StageReference = StageName
"""The name of an earlier stage, or `dataset`."""
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""The name of a Kubernetes object."""
Text = Annotated[str, Field(min_length=1, max_length=256)]
LocalName = Annotated[str, Field(max_length=256)]
Address = Annotated[
    str,
    Field(min_length=1, max_length=1024, pattern=r"^((s3|hf|pvc)://[^/].*|file://.+|[^:]+)$"),
    Remedy(
        "begin with s3://BUCKET, hf://OWNER/NAME or file://, or name a path beside the manifest",
    ),
]
"""s3://bucket/key, hf://owner/name, file:///path, or a path relative to a local manifest."""
_PORT = r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])?)?"
_HOST = r"[^\s/?#@:\[\]\\%]+"
_DNS_HOST = r"([A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?"


def _http_url(host: str) -> str:
    """The pattern of an http(s) URL without query: a host or an IPv6 address, a port up to 65535, a path.

    A user and a password pass it, since `_without_user` refuses them in words, and without repeating them.
    """
    return rf"^https?://([^\s/?#]+@)?({host}|\[[0-9a-fA-F:.]+\]){_PORT}(/[^\s?#]*)?$"


def _without_user(remedy: str) -> Rule:
    return Rule(
        "!self.matches('^[^/]*//[^/?#]*@')",
        f"holds a user or a password, which plans, reports and logs would show; {remedy}",
        repeats=False,
    )


HTTPURL = Annotated[
    str,
    Field(min_length=8, max_length=1024, pattern=_http_url(_HOST)),
    Remedy("write http(s)://HOST[:PORT][/PATH], such as https://api.example.com/v1"),
    _without_user("leave them out and give the key by apiKeySecretRef"),
]
"""The address of an HTTP server, or of a path on it."""
S3Endpoint = Annotated[
    str,
    Field(min_length=8, max_length=1024, pattern=_http_url(_DNS_HOST)),
    Remedy("write http(s)://HOST[:PORT], such as http://s3.example.com:9000; HOST is a DNS name or an address"),
    _without_user("leave them out and give the keys by credentialsSecretRef"),
]
"""The address of an S3 server: its host must be a DNS name or an address, since S3's clients take no other."""
CIDR = Annotated[
    str,
    Field(min_length=1, max_length=64),
    Rule("isCIDR(self)", "is no CIDR; write ADDRESS/BITS, such as 10.0.0.0/8 or fd00::/8"),
]
"""A block of addresses; bits of a host are no error, as in a NetworkPolicy."""
Quantity = Annotated[
    str,
    Field(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]{1,9})?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"),
    Remedy('write a Kubernetes quantity in quotes, such as "32", "500m" or "400Gi"'),
]
"""A Kubernetes quantity, as a string: "32", "500m", "400Gi"."""
Seconds = Annotated[int, Field(ge=0, le=31_536_000)]
Seed = Annotated[int, Field(ge=0, le=2_147_483_647)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class NameReference(Model):
    """A reference to an object of the job's namespace, by name."""

    name: Annotated[ObjectName, Unkeyed]
    """Name of the object."""


class SecretReference(Model):
    """One entry of a Secret of the job's namespace; on a laptop the environment variable `KD_SECRET_<NAME>_<KEY>`."""

    name: Annotated[ObjectName, Unkeyed]
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$"), Unkeyed]
    """Key within the Secret."""


class ModelSource(Model):
    """Where a model's files lie."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!self.uri.matches('^hf://') || has(self.revision)",
            "a model of the Hugging Face Hub needs a revision; add the commit",
            "revision",
        ),
    )

    uri: Annotated[Address, Unkeyed]
    """hf://OWNER/NAME (with a revision), s3://BUCKET/PREFIX/, or (locally) file:// and relative paths."""
    revision: Annotated[Annotated[str, Field(min_length=1, max_length=128)] | None, Unkeyed] = None
    """Commit, tag or branch on the Hub; it is resolved to a commit when the job is planned."""
    secret_ref: SecretReference | None = None
    """The Hub's token."""
    trust_remote_code: Annotated[bool, Unkeyed] = False
    """Whether code that comes with the model may run; the runtime must allow it too."""
