"""What docstrings say, as plain text for a terminal: what a class does, and what its arguments mean."""

from __future__ import annotations

import inspect
import re

_SYMBOLS = {
    "lambda": "λ", "eta": "η", "theta": "θ", "Omega": "Ω", "alpha": "α", "beta": "β", "sigma": "σ",
    "tau": "τ", "rho": "ρ", "mu": "μ", "gamma": "γ", "kappa": "κ", "epsilon": "ε", "Delta": "Δ",
    "delta": "δ", "sqrt": "√", "leftarrow": "←", "le": "≤", "ge": "≥", "cdot": "·", "times": "×",
    "infty": "∞", "sum": "Σ", "in": "∈",
}  # fmt: skip
_ROLE = re.compile(r":(?P<role>\w+):`(?P<text>[^`]*)`")
_SECTION = re.compile(r"^(?:Args|Attributes|Raises|Returns|Example):$", re.MULTILINE)
_ARGUMENTS = re.compile(r"^Args:\n(?P<lines>(?:(?: {4}.*)?\n)+)", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(?P<name>\w+): (?P<text>.*(?:\n {5,}.*)*)", re.MULTILINE)


def first_sentence(made: object) -> str:
    """The first sentence of a docstring; empty if there is none.

    Example:
        >>> from cl_callbacks import EWC
        >>> first_sentence(EWC)
        'Elastic weight consolidation: weights with high Fisher information resist change.'
    """
    paragraph = plain(inspect.cleandoc(made.__doc__ or "").partition("\n\n")[0])
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]


def description(made: object) -> list[str]:
    r"""The paragraphs of a docstring before its sections; displayed equations as they are written, in LaTeX.

    Example:
        >>> from cl_callbacks import SelfNormalizedResets
        >>> description(SelfNormalizedResets)[2]
        '(1-p_i)^{a_i} < \\tau .'
    """
    parts = _SECTION.split(inspect.cleandoc(made.__doc__ or ""), maxsplit=1)[0].split("\n\n")
    found = [
        " ".join(part.split()).removeprefix(".. math:: ")
        if part.lstrip().startswith(".. math::")
        else plain(part)
        for part in parts
    ]
    return list(filter(None, found))


def meanings_of_arguments(kind: type) -> dict[str, str]:
    """What each argument of a class means, from its docstring and those of the classes that it extends.

    Example:
        >>> from cl_callbacks import EpochBoundaries
        >>> list(meanings_of_arguments(EpochBoundaries))
        ['every_n_epochs']
    """
    found: dict[str, str] = {}
    for made in reversed(kind.__mro__):
        section = _ARGUMENTS.search(f"{inspect.cleandoc(vars(made).get('__doc__') or '')}\n")
        if section:
            found |= {entry["name"]: plain(entry["text"]) for entry in _ARGUMENT.finditer(section["lines"])}
    return found


def plain(text: str) -> str:
    r"""One line of text without the marks of reStructuredText and LaTeX.

    Example:
        >>> plain(r"factor :math:`\lambda/2` of :class:`~cl_callbacks.EWC`, or ``None``")
        'factor λ/2 of EWC, or None'
    """
    return " ".join(_ROLE.sub(_spoken, text).replace("``", "").replace("`", "").split())


def _spoken(found: re.Match[str]) -> str:
    text = found["text"]
    if found["role"] == "math":
        text = re.sub(r"\\([A-Za-z]+)", lambda name: _SYMBOLS.get(name[1], ""), text)
        return re.sub(r"[{}\\]", "", text)
    return text.rpartition(".")[2] if text.startswith("~") else text
