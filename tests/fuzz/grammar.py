"""What may be typed or stand in a config: real keys and options of ``conf/``, with values that are nearly right."""

from copy import deepcopy
from functools import cache

from hypothesis import strategies as st

from tests.conftest import ROOT, composed
from zfscope.schema import leaves

CONF = ROOT / "conf"
# Text of all kinds; no slash, so that a place which is typed lies in the working directory.
ODD = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=12)
WORDS = st.sampled_from(
    ["conv1", "fc7", "best", "cuda:1", "a b", "été", "日本", "x" * 3000, "0x10", "1_0", "", ".", "~x"]
)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([0, -1, 2**31, 2**32, 2**63, 10**30, 10**400]),
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), 1e-320, 1e300]),
)
PLAIN = st.one_of(NUMBERS, st.booleans(), st.none(), WORDS, ODD)
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(WORDS, ODD), inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def changed(draw, whole):
    """A copy of nested mappings and lists, one to three of its places removed or given another value."""
    copy = deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        parent, key = {None: copy}, None
        while isinstance(parent[key], dict | list) and parent[key] and (key is None or draw(st.integers(0, 3))):
            parent = parent[key]
            key = draw(st.sampled_from(sorted(parent, key=str) if isinstance(parent, dict) else range(len(parent))))
        fault = draw(st.sampled_from(["value", "value", "remove", "move", "add"]))
        if key is None or fault == "value":
            parent[key] = draw(NESTED)
            copy = parent[None] if key is None else copy
        elif fault == "remove":
            del parent[key]
        elif fault == "move":  # the value of another place
            parent[key] = deepcopy(draw(st.sampled_from([*(parent.values() if isinstance(parent, dict) else parent)])))
        elif isinstance(parent, dict):
            parent[draw(st.one_of(WORDS, ODD))] = draw(NESTED)
        else:
            parent.append(draw(NESTED))
    return copy


INTERPOLATIONS = st.sampled_from(
    ["${seed}", "${model}", "${data.crop}", "${no.such}", "${..seed}", "${oc.env:HOME}", "${oc.env:NOT_SET,7}"]
    + ["${oc.env:NOT_SET}", "${now:%Y}", "${hydra:job.num}", "${conf:}", "${groups:train}", "${oc.select:seed,3}"]
    + [
        "${oc.decode:3}",
        "${oc.create:{a:1}}",
        "${${seed}}",
        "${",
        "}",
        "$",
        "${a",
        "\\${seed}",
        "${oc.dict.keys:model}",
    ]
    + ["${nothing:1}", "${hydra:runtime.output_dir}", "a${seed}b${seed}", "${callbacks}", "${name}", "${oc.env:}"]
)


@cache
def keys(name: str) -> list[str]:
    """The dotted keys that a command knows, groups and places in lists among them."""
    below = [key for key, _ in leaves(composed(name=name))]
    return sorted({".".join(key.split(".")[:depth]) for key in below for depth in range(1, key.count(".") + 2)})


@cache
def groups() -> dict[str, list[str]]:
    """The options of each group of ``conf/``, and of those of Hydra that run in this process."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.rglob("*/*.yaml")):
        found.setdefault(path.parent.relative_to(CONF).as_posix().removeprefix("analyze/"), []).append(path.stem)
    found.update({"hydra/launcher": ["basic"], "hydra/sweeper": ["basic"], "hydra/job_logging": ["none", "stdout"]})
    return found


def as_typed(value) -> str:
    """A value in Hydra's grammar, more or less."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_typed(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_typed, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


FUNCTIONS = st.sampled_from(
    ["choice(1,2)", "choice()", "range(0,3)", "range(3,0)", "range(0,1,0)", "range(0,1e9)", "range(1,3,0.5)", "glob(*)"]
    + ["glob(table3_*)", "glob(*,exclude=z*)", "interval(0,1)", "int(3.5)", "int(abc)", "float(1e400)", "str([1,2])"]
    + ["bool(maybe)", "json_str({a:1})", "sort(3,1)", "shuffle(1,2)", "tag(a,b,choice(1))", "extend_list(1,2)"]
    + ["int(range(1,3))", "nothing(1)", "choice(choice(1))", "sort(range(3,1))", "1,2,3", "a,,b", ",", "1,"]
)
QUOTED = st.one_of(
    PLAIN.map(lambda value: f"'{value}'"), PLAIN.map(lambda value: f'"{value}"'), st.sampled_from(["'", '"a'])
)
DEEP = st.integers(1, 3000).flatmap(
    lambda depth: st.sampled_from(
        ["[" * depth + "]" * depth, "{a:" * depth, "(" * depth, "int(" * depth + "1" + ")" * depth]
    )
)
VALUES = st.one_of(NESTED.map(as_typed), NESTED.map(as_typed), INTERPOLATIONS, FUNCTIONS, QUOTED, DEEP)
PLACES = st.sampled_from(
    ["here", "a/b", "${seed}", "${hydra:job.num}", "'x y'", "", "null", "5", "[a]", "été", "${name}"]
)


@st.composite
def overrides(draw, name: str) -> str:
    """One override: mostly of a real key or group, with something wrong in it now and then."""
    kind = draw(st.sampled_from(["value", "value", "value", "group", "hydra", "odd"]))
    if kind == "group":
        group = draw(st.sampled_from(sorted(groups())))
        others = st.one_of(VALUES, st.sampled_from(groups()[group]).map(lambda option: f"{option}_"))
        value = draw(st.one_of(st.sampled_from(groups()[group]), st.sampled_from(groups()[group]), others))
        key = group + draw(st.sampled_from(["", "", "", "", "@x", "@data", "@:y", "@"]))
    elif kind == "hydra":
        key, value = (
            draw(
                st.sampled_from(
                    ["hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.num", "hydra.mode"]
                )
            ),
            draw(st.one_of(PLACES, st.sampled_from(["RUN", "MULTIRUN"]))),
        )
    elif kind == "odd":
        key, value = draw(st.one_of(ODD, WORDS)), draw(VALUES)
    else:
        key, value = draw(st.sampled_from(keys(name))), draw(VALUES)
        if draw(st.integers(0, 9)) == 0:
            place = draw(st.integers(0, len(key)))
            key = key[:place] + draw(st.sampled_from(["x", ".", "", "[0]", "@", " ", "é", ".0."])) + key[place + 1 :]
        if key.startswith("hydra"):
            value = draw(PLACES)
    sign = draw(st.sampled_from(["", "", "", "", "", "+", "++", "~"]))
    return sign + key + draw(st.sampled_from(["=", "=", "=", "=", "=", "=", "", "==", " = "])) + value


@st.composite
def command_lines(draw) -> tuple[str, list[str]]:
    """A command and what is typed after it."""
    name = draw(st.sampled_from(["train", "train", "analyze"]))
    words = draw(st.lists(overrides(name), min_size=1, max_size=4))
    words = [word for word in words if not is_elsewhere(word)]
    if draw(st.integers(0, 5)) == 0:
        words.append(
            draw(
                st.sampled_from(
                    ["-m", "--multirun", "--cfg=job", "--config-dir=none", "--help", "-lr", "--cfg", "-c=x"]
                )
            )
        )
    return name, draw(st.permutations(words))


def is_elsewhere(word: str) -> bool:
    """Whether a place of an override would lie outside the working directory, or start processes."""
    key, _, value = word.partition("=")
    return "hydra" in key and (
        "env" in value or ".." in value or "conf:" in value or "output_dir" in value or key.lstrip("+~") == "hydra.job"
    )
