"""Says what the files of Odoo modules declare, without running any of them.

Standard input: a JSON list of {"name", "manifest", "files": {path: text}}, paths relative to the module.
Standard output: a JSON list in the same order, of {"manifest": {...} | null, "files": {path: {...}}, "packages": […], "hook_words": […]}; what
these hold says crates/model/src/plan/description.rs.
"""
import ast
import hashlib
import json
import re
import sys
import xml.parsers.expat

sys.setrecursionlimit(5000)

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MODEL_BASES = {"BaseModel", "Model", "AbstractModel", "TransientModel"}
TABLE_OBJECTS = {"Constraint", "Index", "UniqueIndex"}
# What `odoo.fields` has besides classes of fields.
NO_FIELDS = {"Command", "Domain", "NewId"}
# What an import may name and what comes neither from the module nor from a Python package of the project.
AT_HAND = {"odoo", "openerp", *sys.stdlib_module_names}
HOOK_WORDS = 5000


def code(node):
    """A node as text in one form."""
    try:
        return ast.unparse(node)
    except ValueError:
        # Python before 3.12 cannot write every text within a text down again.
        return ast.dump(node)


def digest(text):
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def dotted(node):
    """`a.b.c` of a chain of names, else an empty text."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, (str, type(...)))


def substance(node):
    """A node as text, without what only explains it."""
    if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return ast.dump(node)
    head = [node.args] if isinstance(node, FUNCTIONS) else [*node.bases, *(keyword.value for keyword in node.keywords)]
    parts = [*node.decorator_list, *head, *(statement for statement in node.body if not is_text(statement))]
    return f"{node.name}({','.join(map(substance, parts))})"


def body_digest(body):
    return digest("".join(ast.dump(statement) for statement in body if not is_text(statement)))


class Module:
    """One module: its parsed files, so that names can be followed from one to another."""

    def __init__(self, name, files):
        self.name = name
        self.paths = set(files)
        self.broken = {}
        self.files = {}
        # Python packages from elsewhere that its definitions use.
        self.packages = set()
        # Of what was followed already, by what it is.
        self.digests = {}
        for path, text in files.items():
            try:
                self.files[path] = PythonFile(self, path, ast.parse(text))
            except SyntaxError as error:
                self.broken[path] = {"kind": "unreadable", "line": error.lineno, "reason": error.msg or "it cannot be parsed"}
            except (ValueError, RecursionError, MemoryError) as error:
                self.broken[path] = {"kind": "unreadable", "line": None, "reason": str(error) or "it is nested too deeply"}

    def local(self, origin, level, name):
        """The path without its ending of what an import names, when it is in this module."""
        if level:
            parts = origin.split("/")[:-level]
            if level > len(origin.split("/")):
                return None
            return "/".join(parts + (name.split(".") if name else []))
        for prefix in (f"odoo.addons.{self.name}", f"openerp.addons.{self.name}", self.name):
            if name == prefix:
                return ""
            if name.startswith(prefix + "."):
                return "/".join(name[len(prefix) + 1:].split("."))
        return None

    def files_of(self, place):
        """The files that an import of a place loads, packages first."""
        found = []
        parts = place.split("/") if place else []
        for end in range(len(parts)):
            found.append("/".join([*parts[:end], "__init__.py"]))
        found.append(f"{place}.py" if place else "__init__.py")
        if place:
            found.append(f"{place}/__init__.py")
        return [path for path in found if path in self.paths]

    def describe(self, path):
        if path in self.broken:
            return self.broken[path]
        try:
            return self.files[path].describe()
        except (RecursionError, MemoryError, ValueError) as error:
            return {"kind": "unreadable", "line": None, "reason": str(error) or "it is nested too deeply"}


class PythonFile:
    def __init__(self, module, path, tree):
        self.module = module
        self.path = path
        self.tree = tree
        self.imports = []
        self.names = {}
        self.bindings = {}
        self.functions = {}
        self.foreign = {}
        # Where all names of other files of the module come from.
        self.stars = []
        self.aliases = {"fields": "fields", "models": "models", "api": "api"}
        self.is_dynamic = False
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    place = module.local(path, 0, alias.name)
                    if place is not None:
                        self.imports += module.files_of(place)
                        if alias.asname:
                            self.names[alias.asname] = tuple(place.rpartition("/")[::2])
                    elif (package := alias.name.split(".")[0]) not in AT_HAND:
                        self.foreign[alias.asname or package] = package
                    if alias.name.split(".")[0] in ("importlib", "pkgutil"):
                        self.is_dynamic = True
            elif isinstance(node, ast.ImportFrom):
                self.read_import(node)
            elif isinstance(node, ast.Name) and node.id == "__import__":
                self.is_dynamic = True
        for node in tree.body:
            for name in bound_names(node):
                self.bindings.setdefault(name, []).append(node)
            if isinstance(node, FUNCTIONS):
                self.functions[node.name] = node

    def read_import(self, node):
        place = self.module.local(self.path, node.level, node.module or "")
        if place is None:
            for alias in node.names:
                if node.module in ("odoo", "openerp") and alias.name in ("fields", "models", "api"):
                    self.aliases[alias.asname or alias.name] = alias.name
                elif node.module in ("odoo.fields", "odoo.models", "odoo.api"):
                    self.aliases[alias.asname or alias.name] = f"{node.module[5:]}.{alias.name}"
                elif not node.level and (package := (node.module or "").split(".")[0]) not in AT_HAND:
                    self.foreign[alias.asname or alias.name] = package
            return
        self.imports += self.module.files_of(place)
        for alias in node.names:
            if alias.name == "*":
                self.stars.append(place)
                continue
            inner = f"{place}/{alias.name}" if place else alias.name
            self.imports += self.module.files_of(inner)
            self.names[alias.asname or alias.name] = (place, alias.name)

    def odoo_name(self, node):
        """`fields.Char`, `models.Model`, `api.depends` for what is one of these under any alias."""
        name = dotted(node)
        head, _, rest = name.partition(".")
        if head == "odoo" and rest.partition(".")[0] in ("fields", "models", "api"):
            return rest
        found = self.aliases.get(head)
        if not found:
            return name
        return f"{found}.{rest}" if rest else found

    # Expressions ------------------------------------------------------------------------------------------------------------------

    def constant(self, name, depth):
        """The nodes that bind a name of this file or of another file of the module, and that file; none for what comes from elsewhere."""
        if name in self.bindings and not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in self.bindings[name]):
            return self, self.bindings[name]
        if name in self.names and depth:
            place, original = self.names[name]
            for path in (f"{place}.py", f"{place}/__init__.py" if place else "__init__.py"):
                other = self.module.files.get(path)
                if other is not None and other is not self:
                    found = other.constant(original, depth - 1)
                    if found[1]:
                        return found
        for place in self.stars if depth and name not in self.bindings else []:
            for path in (f"{place}.py", f"{place}/__init__.py" if place else "__init__.py"):
                other = self.module.files.get(path)
                if other is not None and other is not self:
                    found = other.constant(name, depth - 1)
                    if found[1]:
                        return found
        return self, []

    def attribute_constant(self, node, depth):
        """The same for `constants.NAME` of a file of the module, and for `Class.NAME` of a class of the module, wherever it stands."""
        inner = self.module_file(node.value)
        if inner is not None:
            return inner.constant(node.attr, depth)
        if not depth:
            return self, []
        if isinstance(node.value, ast.Name):
            owner, nodes = self.constant(node.value.id, depth)
        elif isinstance(node.value, ast.Attribute):
            owner, nodes = self.attribute_constant(node.value, depth - 1)
        else:
            return self, []
        if len(nodes) == 1 and isinstance(nodes[0], ast.ClassDef):
            return owner.member(nodes[0], node.attr, depth - 1)
        return self, []

    def module_file(self, node):
        """The file of the module that a name stands for: `from . import constants`."""
        if isinstance(node, ast.Name) and node.id in self.names:
            place, original = self.names[node.id]
            inner = f"{place}/{original}" if place else original
            for path in (f"{inner}.py", f"{inner}/__init__.py"):
                if path in self.module.files:
                    return self.module.files[path]
        return None

    def member(self, node, name, depth):
        """What binds a name in a class, or in those of its bases that the module has."""
        found = [statement for statement in node.body if name in bound_names(statement)]
        if found or not depth:
            return self, found
        for base in node.bases:
            owner, nodes = self.named(base, depth - 1)
            if len(nodes) == 1 and isinstance(nodes[0], ast.ClassDef):
                owner, found = owner.member(nodes[0], name, depth - 1)
                if found:
                    return owner, found
        return self, []

    def named(self, node, depth):
        """What binds a name, or a name of a name; none for any other expression."""
        if isinstance(node, ast.Name):
            return self.constant(node.id, depth)
        if isinstance(node, ast.Attribute):
            return self.attribute_constant(node, depth)
        return self, []

    def closure(self, nodes, seen=None):
        """These nodes with everything of the module that is named in them, directly or not."""
        seen = {} if seen is None else seen
        for node in nodes:
            if id(node) in seen:
                continue
            seen[id(node)] = node
            for part in ast.walk(node):
                if isinstance(part, (ast.Name, ast.Attribute)):
                    self.note_package(part)
                    owner, bound = self.named(part, 3)
                    if isinstance(part, ast.Attribute) and not bound:
                        continue
                    owner.closure([other for other in bound if not owner.is_made_by_odoo(other)], seen)
        return list(seen.values())

    def note_package(self, node):
        if isinstance(node, ast.Name) and node.id in self.foreign:
            self.module.packages.add(self.foreign[node.id])

    def is_made_by_odoo(self, node):
        """Models are compared by themselves."""
        return isinstance(node, ast.ClassDef) and self.is_model(node)

    def expression(self, node, local=None):
        """An expression as text in which the module's own constants stand by their values, and its value when it is a plain one."""
        notes = set()
        resolver = Resolver(self, local or {}, notes)
        resolved = resolver.resolve(node, 6)
        source = code(resolved) + "".join(f" [{note}]" for note in sorted(notes))
        answer = {"source": source}
        try:
            value = ast.literal_eval(resolved)
            json.dumps(value)
            answer["value"] = value
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            pass
        return answer

    # Statements -------------------------------------------------------------------------------------------------------------------

    def describe(self):
        answer = {
            "kind": "python", "imports": list(dict.fromkeys(self.imports)), "dynamic_imports": self.is_dynamic,
            "models": [], "functions": {}, "classes": {}, "constants": {}, "statements": [],
        }
        for node in self.tree.body:
            if is_text(node) or isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)):
                continue
            if isinstance(node, FUNCTIONS):
                answer["functions"][node.name] = self.method(node)
            elif isinstance(node, ast.ClassDef):
                if self.is_model(node):
                    answer["models"].append(self.model(node))
                else:
                    self.plain_class(node, node.name, answer)
            elif is_harmless(node):
                answer["functions"][f"line: {code(node)[:80]}"] = {"line": node.lineno, "head": "", "body": digest(ast.dump(node))}
            elif binds_names_only(node):
                for name in bound_names(node):
                    # Twice bound means both.
                    before = answer["constants"].get(name, {}).get("source", "")
                    answer["constants"][name] = {"line": node.lineno, "source": before + code(node)}
            else:
                answer["statements"].append({"line": node.lineno, "digest": digest(ast.dump(node))})
        return answer

    def plain_class(self, node, name, answer):
        """What a class that is no model assigns may be used in definitions, also in those of other modules, as constants of a file may."""
        constants = []
        if not any(dotted(base).endswith("Controller") for base in node.bases):
            constants = [statement for statement in node.body if binds_names_only(statement)]
            for statement in constants:
                for constant in bound_names(statement):
                    answer["constants"][f"{name}.{constant}"] = {"line": statement.lineno, "source": code(statement)}
        inner = [statement for statement in node.body if isinstance(statement, ast.ClassDef)]
        for other in inner:
            self.plain_class(other, f"{name}.{other.name}", answer)
        rest = [statement for statement in node.body if statement not in [*constants, *inner] and not is_text(statement)]
        head = [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
        answer["classes"][name] = {"line": node.lineno, "digest": digest("".join(map(substance, [*head, *rest])))}

    def is_model(self, node):
        bases = [self.odoo_name(base) for base in node.bases]
        if any(base.startswith("models.") and base[7:] in MODEL_BASES for base in bases):
            return True
        for statement in node.body:
            for name, value in assigned(statement):
                if name in ("_name", "_inherit", "_inherits"):
                    return True
                called = self.odoo_name(value.func) if isinstance(value, ast.Call) else ""
                if is_field(called) or called.startswith("models."):
                    return True
        return False

    def model(self, node):
        answer = {
            "class": node.name, "line": node.lineno, "bases": [dotted(base) or code(base) for base in node.bases],
            "dynamic": [code(part) for part in node.decorator_list] + [code(part.value) for part in node.keywords],
            "attributes": {}, "fields": {}, "objects": {}, "methods": {}, "statements": [],
        }
        local = {}
        for base in node.bases:
            self.closure([base])
        for statement in node.body:
            if is_text(statement) or isinstance(statement, ast.Pass):
                continue
            if isinstance(statement, FUNCTIONS):
                method = self.method(statement)
                if statement.name in answer["methods"]:
                    # A property and its setter, say: one after the other.
                    before = answer["methods"][statement.name]
                    method["body"] = digest(before["body"] + method["body"])
                    method["head"] = before["head"] + method["head"]
                answer["methods"][statement.name] = method
                continue
            pairs = assigned(statement)
            if not pairs:
                answer["statements"].append({"line": statement.lineno, "digest": digest(ast.dump(statement))})
                continue
            for name, value in pairs:
                kind = self.odoo_name(value.func) if isinstance(value, ast.Call) else ""
                if is_field(kind):
                    answer["fields"][name] = self.field(kind[7:], value, local)
                elif kind.startswith("models.") and kind[7:] in TABLE_OBJECTS:
                    source = self.expression(value, local)["source"]
                    answer["objects"][name] = {"line": value.lineno, "object": kind[7:], "source": source}
                elif isinstance(value, ast.Call) and not name.startswith("_") and dotted(value.func).rpartition(".")[2][:1].isupper():
                    # A class of fields that somebody else has written, as far as one can see.
                    self.closure([value.func])
                    answer["fields"][name] = {**self.field(kind or "?", value, local), "dynamic": True}
                else:
                    answer["attributes"][name] = {"line": statement.lineno, **self.expression(value, local)}
                    local[name] = value
        return answer

    def field(self, kind, call, local):
        return {
            "type": kind, "line": call.lineno,
            "positional": [self.expression(argument, local) for argument in call.args],
            "keywords": {keyword.arg or "**": self.expression(keyword.value, local) for keyword in call.keywords},
            "dynamic": any(isinstance(argument, ast.Starred) for argument in call.args) or any(not keyword.arg for keyword in call.keywords),
        }

    def method(self, node):
        head = [code(decorator) for decorator in node.decorator_list]
        return {
            "line": node.lineno, "head": "\n".join([*head, code(node.args)]), "body": body_digest(node.body),
            "declares": sorted({name[4:] for name in map(self.decorator, node.decorator_list) if name.startswith("api.")}),
            "makes_fields": any(self.makes_fields(call) for call in ast.walk(node) if isinstance(call, ast.Call)),
        }

    def decorator(self, node):
        return self.odoo_name(node.func if isinstance(node, ast.Call) else node)

    def makes_fields(self, call):
        name = self.odoo_name(call.func)
        if is_field(name):
            return True
        last = name.rpartition(".")[2]
        return last in ("_add_field", "exec", "setattr") or (name == "type" and len(call.args) == 3)


class Resolver:
    """Puts the values of a module's own constants in the place of their names."""

    def __init__(self, file, local, notes):
        self.file = file
        self.local = local
        self.notes = notes

    def resolve(self, node, depth):
        if depth == 0:
            return node
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            if node.id in self.local:
                return self.resolve(self.local[node.id], depth - 1)
            self.file.note_package(node)
            return self.put(node, *self.file.constant(node.id, 3), depth)
        if isinstance(node, ast.Attribute):
            put = self.put(node, *self.file.attribute_constant(node, 3), depth)
            if put is not node:
                return put
            if node.attr in ("value", "name") and (member := self.enum_member(node, depth)) is not None:
                return member
            self.note_class(node.value)
        if isinstance(node, (ast.Lambda, *FUNCTIONS)):
            return node
        fresh = {}
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                value = self.resolve(value, depth)
            elif isinstance(value, list):
                value = [self.resolve(item, depth) if isinstance(item, ast.AST) else item for item in value]
            fresh[name] = value
        if isinstance(node, ast.Call):
            other, nodes = self.file.named(node.func, 3)
            if any(isinstance(function, FUNCTIONS) for function in nodes):
                self.note(node.func, other, nodes)
        return ast.copy_location(type(node)(**fresh), node)

    def put(self, node, other, nodes, depth):
        if not nodes:
            return node
        if len(nodes) == 1:
            value = dict(assigned(nodes[0])).get(node.id if isinstance(node, ast.Name) else node.attr)
            if value is None and len(assigned(nodes[0])) == 1:
                value = assigned(nodes[0])[0][1]
            if value is not None:
                return Resolver(other, {}, self.notes).resolve(value, depth - 1)
        if all(isinstance(bound, FUNCTIONS) for bound in nodes) or any(other.is_made_by_odoo(bound) for bound in nodes):
            # What is only named, to be called later.
            return node
        self.note(node, other, nodes)
        return node

    def note(self, node, other, nodes):
        """What it is follows from all of this."""
        known = self.file.module.digests
        key = tuple(map(id, nodes))
        if key not in known:
            known[key] = digest("".join(sorted(map(substance, other.closure(nodes)))))
        self.notes.add(f"{code(node)} is {known[key]}")

    def note_class(self, node):
        """Something of a class that cannot be found in it: of `Enum`, say."""
        other, nodes = self.file.named(node, 3)
        if nodes and all(isinstance(bound, ast.ClassDef) and not other.is_made_by_odoo(bound) for bound in nodes):
            self.note(node, other, nodes)

    def enum_member(self, node, depth):
        """The value or the name of `Kind.LARGE`."""
        if not isinstance(node.value, ast.Attribute):
            return None
        owner, nodes = self.file.named(node.value.value, 3)
        if len(nodes) != 1 or not isinstance(nodes[0], ast.ClassDef) or self.file.module_file(node.value.value):
            return None
        owner, found = owner.member(nodes[0], node.value.attr, 3)
        if len(found) != 1 or not assigned(found[0]):
            return None
        if any(isinstance(part, ast.Call) for part in ast.walk(found[0])):
            # `auto()`: it follows from the others.
            self.note_class(node.value.value)
        if node.attr == "name":
            return ast.copy_location(ast.Constant(node.value.attr), node)
        return Resolver(owner, {}, self.notes).resolve(assigned(found[0])[0][1], depth - 1)


def is_field(name):
    return name.startswith("fields.") and name.count(".") == 1 and name[7:8].isupper() and name[7:] not in NO_FIELDS


def assigned(statement):
    """Names and values of a plain assignment; nothing for any other statement."""
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [(statement.target.id, statement.value)] if statement.value is not None else [(statement.target.id, statement.annotation)]
    if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
        return [(target.id, statement.value) for target in statement.targets]
    return []


def bound_names(node):
    """The names that a statement of a file binds, as far as they can be seen."""
    names = []
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [(alias.asname or alias.name).split(".")[0] for alias in node.names]
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and isinstance(part.ctx, (ast.Store, ast.Del)):
            names.append(part.id)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        # STATES.append(…)
        names.append(dotted(node.value.func.value).split(".")[0])
    return names


def binds_names_only(node):
    """`A = 1`, `A, B = 1, 2` and `A: int = 1`, but not `A.b = 1`."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    parts = [part for target in targets for part in (target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target])]
    return all(isinstance(part, ast.Name) for part in parts)


def is_harmless(node):
    """Imports behind a condition, and loggers: what can declare nothing."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)) or is_text(node):
        return True
    if isinstance(node, ast.Assign):
        call = node.value
        return isinstance(call, ast.Call) and dotted(call.func).rpartition(".")[2] in ("getLogger", "LazyTranslate", "TypeVar")
    if isinstance(node, ast.Expr):
        call = node.value
        return isinstance(call, ast.Call) and dotted(call.func).rpartition(".")[0] in ("_logger", "logger", "logging", "warnings")
    if isinstance(node, ast.If):
        return isinstance(node.test, (ast.Name, ast.Attribute)) and dotted(node.test).endswith("TYPE_CHECKING") and \
            all(is_harmless(part) for part in [*node.body, *node.orelse])
    if isinstance(node, ast.Try):
        handled = [part for handler in node.handlers for part in handler.body]
        plain = [part for part in [*node.body, *handled, *node.orelse, *node.finalbody] if not is_missing(part)]
        return all(is_harmless(part) for part in plain)
    return False


def is_missing(node):
    """`library = None` where an import failed."""
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)


# XML ------------------------------------------------------------------------------------------------------------------------------

CONTAINERS = {"odoo", "openerp", "data"}
LOOSE = CONTAINERS | {"record", "menuitem", "function", "asset"}


class Records:
    """The records of an XML file, each as text in one form: no comments, attributes in order."""

    def __init__(self, module):
        self.module = module
        self.records = []
        self.mentions = set()
        self.stack = []
        self.parts = None
        self.text = []

    def read(self, text):
        parser = xml.parsers.expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.characters
        parser.EntityDeclHandler = self.entity
        self.parser = parser
        parser.Parse(text.encode("utf-8"), True)
        return {"kind": "records", "records": self.records, "mentions": sorted(self.mentions)}

    def entity(self, *_):
        raise ValueError("it declares entities")

    def start(self, tag, attributes):
        if self.parts is None:
            frozen = attributes.get("noupdate", self.stack[-1][1] if self.stack else "0")
            is_container = tag in CONTAINERS and all(above in CONTAINERS for above, _ in self.stack)
            self.stack.append((tag, frozen))
            if is_container:
                return
            name = attributes.get("id", "")
            if name.startswith(self.module + "."):
                name = name[len(self.module) + 1:]
            model = attributes.get("model", "")
            if tag == "template":
                model = "ir.ui.view"
            elif tag == "menuitem":
                model = "ir.ui.menu"
            elif tag == "asset":
                model = "ir.asset"
            self.current = {
                "tag": tag, "id": name, "model": model, "line": self.parser.CurrentLineNumber, "noupdate": is_true(frozen),
            }
            self.depth = 0
            self.parts = []
            self.tags = []
            attributes = {**attributes, "id": name} if name else attributes
        self.flush()
        self.mention(attributes)
        self.tags.append(tag)
        self.depth += 1
        self.parts.append("<" + tag + "".join(f" {key}={attributes[key]!r}" for key in sorted(attributes)) + ">")

    def end(self, tag):
        if self.parts is None:
            self.stack.pop()
            return
        self.flush()
        self.parts.append(f"</{tag}>")
        self.tags.pop()
        self.depth -= 1
        if self.depth == 0:
            self.current["digest"] = digest("".join(self.parts))
            self.records.append(self.current)
            self.parts = None
            self.stack.pop()

    def characters(self, text):
        if self.parts is not None:
            self.text.append(text)

    def flush(self):
        text = "".join(self.text)
        self.text = []
        if text and not (text.isspace() and self.tags and self.tags[-1] in LOOSE):
            self.parts.append(repr(text))

    def mention(self, attributes):
        for key in ("file", "web_icon"):
            value = attributes.get(key, "")
            for part in value.split(","):
                part = part.strip().lstrip("/")
                if part.startswith(self.module + "/"):
                    part = part[len(self.module) + 1:]
                if "/" in part:
                    self.mentions.add(part)
            if key == "web_icon" and "," in value:
                self.mentions.add(value.split(",", 1)[1].strip())


def is_true(text):
    return text.strip().lower() not in ("", "0", "false", "no", "off")


def read_csv(module, path, text):
    import csv
    import io
    csv.field_size_limit(64 * 1024 * 1024)
    model = path.rpartition("/")[2].rpartition(".")[0].split("-")[0]
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    header = next(rows, [])
    records = []
    place = header.index("id") if "id" in header else None
    for row in rows:
        if not any(row):
            continue
        name = row[place] if place is not None and place < len(row) else ""
        if name.startswith(module + "."):
            name = name[len(module) + 1:]
        if not name and records and place is not None:
            # A row that goes on with the lines of the one before.
            records[-1]["digest"] = digest(records[-1]["digest"] + repr(row))
            continue
        cells = sorted(zip(header, row))
        records.append({"tag": "record", "id": name, "model": model, "line": rows.line_num, "noupdate": False, "digest": digest(repr(cells))})
    return {"kind": "records", "records": records, "mentions": []}


def read_data(module, path, text):
    try:
        if path.endswith(".csv"):
            return read_csv(module, path, text)
        return Records(module).read(text)
    except xml.parsers.expat.ExpatError as error:
        return {"kind": "unreadable", "line": error.lineno, "reason": xml.parsers.expat.ErrorString(error.code)}
    except Exception as error:
        return {"kind": "unreadable", "line": None, "reason": str(error) or type(error).__name__}


# Translations ---------------------------------------------------------------------------------------------------------------------

STORED = re.compile(r"(?:model|model_terms):[\w.]+,\w+:\w+\.\S+")
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def read_po(text):
    """Each entry as the places where its words stand, the English and the translation; of the same English the last one counts, as in Odoo."""
    entries = {}
    entry, part = {}, None

    def keep():
        if entry.get("msgid"):
            entries[entry.get("msgctxt"), entry["msgid"]] = (entry.get("places", []), entry["msgid"], entry.get("msgstr", ""))
        entry.clear()

    for line in text.removeprefix("\ufeff").splitlines():
        line = line.strip()
        if line.startswith("#"):
            if "msgid" in entry:
                keep()
            if line.startswith("#:"):
                entry.setdefault("places", []).extend(line[2:].split())
            continue
        key, _, rest = line.partition(" ")
        if key in ("msgctxt", "msgid") and (key == "msgctxt" or "msgctxt" not in entry or "msgid" in entry) and "msgid" in entry:
            keep()
        if key in ("msgctxt", "msgid", "msgstr", "msgstr[0]"):
            part = key.removesuffix("[0]")
            entry[part] = ""
            line = rest.strip()
        elif key.startswith("msg"):
            part = None
        if part and line.startswith('"') and line.endswith('"') and len(line) > 1:
            entry[part] += re.sub(r"\\(.)", lambda match: ESCAPES.get(match[1], match[1]), line[1:-1])
    keep()
    return entries


def read_translations(module, path, files):
    """What Odoo's own reader makes of the file: with a template beside it, the template says what there is, and where."""
    entries = read_po(files[path])
    template = files.get(f"{path.rpartition('/')[0]}/{module}.pot")
    places = {key: found[0] for key, found in (read_po(template) if template is not None else entries).items()}
    words, rest = {}, []
    for key, (_, english, translation) in entries.items():
        for place in places.get(key, []) if translation else []:
            if STORED.fullmatch(place):
                # Of a field that is translated as a whole only the record counts, whatever it says in English by now.
                words[f"{place}\n{english if place.startswith('model_terms:') else ''}"] = translation
            elif place.startswith("code:"):
                rest.append(f"{english}\n{translation}")
    return {"kind": "translations", "words": words, "code": digest("\n\n".join(sorted(rest)))}


def read_other(module, path, files):
    if path.endswith(".po"):
        try:
            return read_translations(module, path, files)
        except (ValueError, RecursionError) as error:
            return {"kind": "unreadable", "line": None, "reason": str(error)}
    return {"kind": "opaque"} if path.endswith(".pot") else read_data(module, path, files[path])


def read_manifest(text):
    try:
        manifest = ast.literal_eval(text)
        json.dumps(manifest, sort_keys=True)
        return {str(key): value for key, value in manifest.items()}
    except (ValueError, TypeError, SyntaxError, AttributeError, RecursionError, MemoryError):
        return None


def hook_words(module, manifest):
    """The words in the texts of what runs before the module is installed, e.g. of the SQL that takes over what another module had."""
    name = (manifest or {}).get("pre_init_hook")
    file = module.files.get("__init__.py")
    if not isinstance(name, str) or file is None:
        return []
    other, nodes = file.constant(name, 3)
    words = set()
    for node in other.closure(nodes):
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                words.update(re.findall(r"[A-Za-z][A-Za-z0-9_]{0,99}", part.value))
    return sorted(words)[:HOOK_WORDS]


answers = []
for entry in json.load(sys.stdin):
    files = entry["files"]
    module = Module(entry["name"], {path: text for path, text in files.items() if path.endswith(".py")})
    answer = {}
    for path in files:
        answer[path] = module.describe(path) if path.endswith(".py") else read_other(entry["name"], path, files)
    manifest = read_manifest(entry["manifest"])
    try:
        words = hook_words(module, manifest)
    except RecursionError:
        words = []
    answers.append({"manifest": manifest, "files": answer, "packages": sorted(module.packages), "hook_words": words})
json.dump(answers, sys.stdout)
