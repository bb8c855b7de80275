"""Text that may hold a stranger's words, made fit to be printed."""


def printable(text: str) -> str:
    """`text` with all that is no printable character, space or line break as an escape: an ANSI sequence becomes \\x1b[31m."""
    if text.isprintable():  # nearly all are, and a report has half a million
        return text
    return "".join(c if c.isprintable() or (c.isspace() and c not in "\r\x0b\x0c") else escape(c) for c in text)


def one_line(text: str) -> str:
    """`printable(text)` in one line: a sentence stays a sentence whatever a file is called."""
    if text.isprintable():
        return text
    return "".join(escape(c) if c in "\n\t\x85\u2028\u2029" else c for c in printable(text))


def escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
