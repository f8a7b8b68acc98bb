"""Every method by name: what drives the conformance laws, the help of the shell, the README's table."""

from jaxdist.catalogue import asynchronous, compressed, decentralized, local_updates, synchronous
from jaxdist.catalogue.entry import Entry as Entry

CATALOGUE: dict[str, Entry] = {
    **synchronous.ENTRIES,
    **local_updates.ENTRIES,
    **decentralized.ENTRIES,
    **asynchronous.ENTRIES,
    **compressed.ENTRIES,
}


def table() -> str:
    """The catalogue as the Markdown table that the README shows."""
    head = "| method | tier | rule | shared | local | sends | use it for | paper |"
    rows = [
        f"| `{name}` | {e.tier} | {e.rule} | {e.shared} | {e.local} | {e.sends} | {e.when} | {e.paper} |"
        for name, e in CATALOGUE.items()
    ]
    return "\n".join([head, "|---" * 8 + "|", *rows])
