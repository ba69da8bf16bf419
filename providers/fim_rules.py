"""The fill-in-the-middle rules of a provider: read from sluice.toml, checked, and applied.

- The module is pure.
- The rules of sluice.toml come before those of the built-in row.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from config import ConfigError
from config_file import did_you_mean
from providers import fim_templates
from providers.base import Fim, Provider, Target, matches
from providers.fim_templates import PLACEHOLDER, FimTemplate

TAKES: Final = '"native", "template", "none", a table, or a list of tables'
LONGEST_STOP: Final = 1024
MOST_STOPS: Final = 64


def read(value: Any, built_in: Any) -> list[Any]:
    """Return the rules of a row's `fim` in sluice.toml, not checked yet.

    Args:
        value: what sluice.toml has.
        built_in: the rules of the built-in row.

    Raises:
        ConfigError: the value is none of TAKES.
    """
    if isinstance(value, str) and value in ("native", "template", "none"):
        natives = [rule for rule in built_in if rule["path"]] if value == "native" else []
        return [*natives, {"kind": value}]
    rules = [value] if isinstance(value, dict) else value
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise ConfigError(f"fim must be {TAKES}")
    return [*rules, *built_in]


def check(row: Provider) -> None:
    """Raise ConfigError if a rule of the row contradicts itself or has an invalid template."""
    at = "fim"
    for rule in row.fim:
        if rule.path and not rule.path.startswith("/"):
            raise ConfigError(f"{at}: path must begin with /, not {rule.path!r}")
        if rule.dialect and not rule.path:
            raise ConfigError(f"{at}: a dialect needs the path of its endpoint")
        if rule.by_template:
            check_template(rule, at)
        elif rule.template or rule.stop or rule.file:
            raise ConfigError(f'{at}: template, stop and file need kind = "template"')
        if rule.path and (rule.by_template or rule.kind == "none"):
            raise ConfigError(f'{at}: path needs kind = "native"')


def check_template(rule: Fim, at: str) -> None:
    text = rule.template
    if "{" in text:
        check_layout(text, f"{at}: template", ("prefix", "suffix"), fim_templates.PROMPT_HAS)
    elif text and text not in fim_templates.BY_NAME:
        near = did_you_mean(text, list(fim_templates.BY_NAME))
        raise ConfigError(
            f"{at}: template must be a prompt with {{prefix}} and {{suffix}}, or a known family, "
            f"not {text!r}{near}"
        )
    if rule.file:
        if "{" not in text:
            raise ConfigError(f"{at}: file needs a prompt in template")
        check_layout(rule.file, f"{at}: file", ("text",), fim_templates.FILE_HAS)
    if len(rule.stop) > MOST_STOPS or not all(0 < len(s) <= LONGEST_STOP for s in rule.stop):
        raise ConfigError(
            f"{at}: stop must be at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters"
        )


def check_layout(layout: str, at: str, needed: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    found = PLACEHOLDER.findall(layout)
    for name in needed:
        if name not in found:
            raise ConfigError(f"{at} must have {{{name}}}")
    for name in found:
        if name not in allowed:
            raise ConfigError(f"{at} has {{{name}}}, but can only have {braced(allowed)}")
        if found.count(name) > 1:
            raise ConfigError(f"{at} has {{{name}}} more than once")


def braced(names: tuple[str, ...]) -> str:
    return " and ".join(f"{{{name}}}" for name in names)


def rule_of(target: Target) -> Fim | None:
    """Return the first rule that fits the target's model."""
    return next((rule for rule in target.provider.fim if matches(target.model, rule.models)), None)


def template_of(rule: Fim, model: str) -> FimTemplate | None:
    """Return the template of a rule for a model; None if the model's name tells no family."""
    if "{" in rule.template:
        file = rule.file or fim_templates.SNIPPET
        return FimTemplate(name="own", prompt=rule.template, stop=rule.stop, file=file)
    name = rule.template
    family = fim_templates.BY_NAME[name] if name else fim_templates.family_of(model)
    if family is None or not rule.stop:
        return family
    return msgspec.structs.replace(family, stop=(*rule.stop, *family.stop))


def usable(target: Target) -> Fim | None:
    """Return the rule by which a target can fill in the middle, or None."""
    rule = rule_of(target)
    if rule is None or rule.kind == "none":
        return None
    if rule.path:
        return rule
    if not target.legacy or target.dialect != "openai":
        return None
    if rule.by_template and template_of(rule, target.model) is None:
        return None
    return rule
