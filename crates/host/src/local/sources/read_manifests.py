"""Reads Odoo manifests without running them.

Standard input: a JSON list of {"path", "text"}. Standard output: a JSON list in the same order, of {"path", "line", "error"} or {"path", "manifest"}.
"""
import ast
import json
import re
import sys


def strings(value, what):
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{what!r} must be a list of strings")
    return list(value)


def read(text):
    value = ast.literal_eval(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a dictionary")
    version = value.get("version", "1.0")
    if isinstance(version, bool) or not isinstance(version, (str, int, float)):
        raise ValueError("'version' must be a string")
    automatic = value.get("auto_install", False)
    is_list = isinstance(automatic, (list, tuple, set))
    return {
        "installable": bool(value.get("installable", True)),
        # An empty list is one, too: such a module waits for nothing.
        "auto_install": is_list or bool(automatic),
        "triggers": strings(sorted(automatic), "auto_install") if is_list else None,
        "version": str(version),
        "depends": strings(value.get("depends") or [], "depends"),
    }


answers = []
for entry in json.load(sys.stdin):
    answer = {"path": entry["path"]}
    try:
        answer["manifest"] = read(entry["text"])
    except SyntaxError as error:
        answer.update(line=error.lineno, error=error.msg)
    except ValueError as error:
        text = str(error)
        line = re.match(r"malformed node or string on line (\d+)", text)
        if text.startswith("malformed node or string"):
            text = "it holds something else than plain values"
        answer.update(line=int(line.group(1)) if line else None, error=text)
    except (RecursionError, MemoryError):
        answer.update(line=None, error="it is nested too deeply")
    answers.append(answer)
json.dump(answers, sys.stdout)
