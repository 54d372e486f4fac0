"""Compiles the byte code of modules, without running any of it.

Standard input: {"root", "modules"}; modules are directories below root. Standard output: a JSON list of {"path", "line", "message", "text"}, one for
each file that Python cannot read. The byte code is taken for good without looking at its source (PEP 552, unchecked): a release never changes. There is
room for it already; nothing else can be written.
"""
import concurrent.futures
import importlib.util
import json
import os
import py_compile
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


def main():
    request = json.load(sys.stdin)
    todo = sorted(jobs(request["root"], request["modules"]))
    if len(todo) < MANY:
        results = map(compile_one, todo)
    else:
        with concurrent.futures.ProcessPoolExecutor() as pool:
            results = list(pool.map(compile_one, todo, chunksize=20))
    json.dump([result for result in results if result], sys.stdout)


if __name__ == "__main__":
    main()
