"""Compiles the byte code of modules, without running any of it.

Standard input: {"root", "modules"}; modules are directories below root. Standard output: a JSON list of {"path", "line", "message", "text", "imported"}, one
for each file that Python cannot read; "imported" says whether Odoo would load it (see `Imports`). The byte code is taken for good without looking at its source (PEP 552, unchecked): a release never changes. There is
room for it already; nothing else can be written.
"""
import ast
import concurrent.futures
import importlib.util
import json
import os
import py_compile
import re
import sys
import warnings

MANY = 100


def compile_one(job):
    path, cached, shown = job
    warnings.simplefilter("ignore")
    try:
        py_compile.compile(path, cfile=cached, dfile=shown, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except py_compile.PyCompileError as error:
        reason = error.exc_value
        if isinstance(reason, SyntaxError):
            return {"path": shown, "line": reason.lineno, "message": reason.msg, "text": reason.text}
        return {"path": shown, "line": None, "message": str(reason), "text": None}
    except (RecursionError, MemoryError, ValueError, OverflowError) as error:
        return {"path": shown, "line": None, "message": str(error) or type(error).__name__, "text": None}
    return None


def jobs(root, modules):
    for module in modules:
        top = os.path.join(root, module)
        for directory, names, files in os.walk(top):
            # What lies in static/ is served, never imported.
            if directory == top and "static" in names:
                names.remove("static")
            for name in files:
                path = os.path.join(directory, name)
                if name.endswith(".py") and os.path.isfile(path):
                    yield path, importlib.util.cache_from_source(path), os.path.relpath(path, root)


class Imports:
    """The files of a module that Odoo loads: what its `__init__.py` imports, and what those import, and scripts of migrations.

    Where code imports by names that it computes, all that lies beside it counts.
    """

    SCRIPT = re.compile(r"^(migrations|upgrades)/[^/]+/(pre|post|end)-[^/]*\.py$")
    COMPUTED = {"import_module", "__import__", "iter_modules", "walk_packages"}

    def __init__(self, top):
        self.top = top
        self.name = os.path.basename(top)
        self.found = set()
        for name in ("__init__.py", "__manifest__.py"):
            self.load(os.path.join(top, name))
        for directory, _, files in os.walk(top):
            for name in files:
                path = os.path.join(directory, name)
                if self.SCRIPT.match(os.path.relpath(path, top)):
                    self.load(path)

    def load(self, first):
        todo = [first]
        while todo:
            path = todo.pop()
            if path in self.found or not os.path.isfile(path):
                continue
            self.found.add(path)
            todo.extend(self.imported_by(path))

    def imported_by(self, path):
        try:
            with open(path, "rb") as file:
                tree = ast.parse(file.read())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
        here = os.path.dirname(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = here
                for _ in range(node.level - 1):
                    base = os.path.dirname(base)
                yield from self.named(base, (node.module or "").split("."), node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from self.absolute(node.module, node.names)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self.absolute(alias.name, ())
            elif isinstance(node, (ast.Name, ast.Attribute)) and (node.id if isinstance(node, ast.Name) else node.attr) in self.COMPUTED:
                yield from self.beside(here)

    def absolute(self, module, names):
        parts = (module or "").split(".")
        if parts[:2] == ["odoo", "addons"] and parts[2:3] == [self.name]:
            yield from self.named(self.top, parts[3:], names)
        elif parts == ["odoo", "addons"] and any(alias.name == self.name for alias in names):
            yield os.path.join(self.top, "__init__.py")

    def named(self, base, parts, names):
        """The files of `from base.parts import names`, with those of the packages on the way."""
        if not (base + "/").startswith(self.top + "/"):
            return
        for part in [part for part in parts if part]:
            yield os.path.join(base, "__init__.py")
            base = os.path.join(base, part)
        yield base + ".py"
        yield os.path.join(base, "__init__.py")
        for alias in names:
            if alias.name == "*":
                yield from self.beside(base)
            else:
                yield os.path.join(base, alias.name + ".py")
                yield os.path.join(base, alias.name, "__init__.py")

    @staticmethod
    def beside(directory):
        if os.path.isdir(directory):
            for name in os.listdir(directory):
                if name.endswith(".py"):
                    yield os.path.join(directory, name)
                yield os.path.join(directory, name, "__init__.py")


def main():
    request = json.load(sys.stdin)
    todo = sorted(jobs(request["root"], request["modules"]))
    if len(todo) < MANY:
        results = map(compile_one, todo)
    else:
        with concurrent.futures.ProcessPoolExecutor() as pool:
            results = list(pool.map(compile_one, todo, chunksize=20))
    errors = [result for result in results if result]
    if errors:
        imported = set()
        for module in request["modules"]:
            top = os.path.join(request["root"], module)
            if any(error["path"].startswith(module + "/") for error in errors):
                imported |= {os.path.relpath(path, request["root"]) for path in Imports(top).found}
        for error in errors:
            error["imported"] = error["path"] in imported
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
