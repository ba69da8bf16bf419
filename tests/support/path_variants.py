"""Spellings of a path that a proxy and an application may understand differently."""

from __future__ import annotations

HOST = "llm.example.com"


def variants_of(path: str) -> list[str]:
    """Return request targets that some server might take for this path.

    Args:
        path: a path without a trailing slash, such as "/metrics".
    """
    name = path.removeprefix("/")
    coded = "".join(f"%{ord(letter):02x}" for letter in name)
    before = "// /// /./ /x/../ /x//../ /%2e/ /x/%2e%2e/ /x/.%2E/ /%2f /%2F/ /static/../ /v1/../"
    before += " /x;y/../ /%c0%af /%ef%bc%8f /\\"
    after = "/ // /// /. /./ /x/.. /x/../ /%2e %2f %2F%2f /%2f ? ?x=1 /?x=/ ?/../x %3f #x /#x"
    after += " #/../x %23 ;x=1 /;x=1 %3bx %00 /%00 %00x %20 %09 %0a /%0a %0d%0a \\ %5c %252f . %2e"
    after += f" //x/../ /../ /..{path}"
    return [
        path,
        *(f"{start}{name}" for start in before.split()),
        *(f"{path}{end}" for end in after.split()),
        *(f"//{name}{end}" for end in ("/", "//", "%2f", "?x")),
        *(path.upper(), path.title(), path.swapcase() + "/"),
        *(f"/{coded}", f"/{coded.upper()}/", f"/%{ord(name[0]):02X}{name[1:]}", f"/%25{coded[1:]}"),
        *(
            f"http://{HOST}{path}",
            f"http://{HOST}/{path}/",
            f"http://{HOST}/.{path}",
            f"http:{path}",
        ),
    ]
