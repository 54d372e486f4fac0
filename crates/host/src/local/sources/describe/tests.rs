//! From two states of a module's files to what its deployment has to do: the reader and the rules together, on what people write.

use std::{
    fs,
    process::{Command, Stdio},
};

use ocore_model::plan::{self, Change, Correction, Database, Way};

use super::*;

const MANIFEST_TEXT: &str =
    "{'name': 'Shop', 'version': '1.0', 'depends': ['base'], 'data': ['views/views.xml', 'data/data.xml', 'security/ir.model.access.csv']}";

/// A module of these files; the usual ones come with it.
fn describe(files: &[(&str, impl AsRef<str>)]) -> ModuleDescription {
    let directory = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(directory.path()).unwrap();
    let module = root.join("shop");
    let usual =
        [("__manifest__.py", MANIFEST_TEXT), ("__init__.py", "from . import models"), ("models/__init__.py", "from . import order\n")];
    let own = files.iter().map(|(path, text)| (*path, text.as_ref()));
    for (path, text) in usual.into_iter().chain(own) {
        let path = module.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let modules = vec![("shop".parse().unwrap(), gather(&root, &module).unwrap())];
    let mut child = Command::new(SYSTEM_PYTHON)
        .args(["-I", "-S", "-c", DESCRIBE_MODULES])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), &request(&modules)).unwrap();
    let answers = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    put_together(modules, Some(answers)).into_values().next().unwrap()
}

/// A database that has all that a module may bring.
fn everything() -> Database {
    Database { languages: None, has_demo: true }
}

fn changes(old: &[(&str, impl AsRef<str>)], new: &[(&str, impl AsRef<str>)]) -> Vec<Change> {
    plan::compare("shop", &describe(old), &describe(new), &everything())
}

fn way(changes: &[Change]) -> Way {
    changes.iter().map(|change| change.way).max().unwrap_or(Way::Nothing)
}

/// A model with these lines in its class.
fn model(lines: &str) -> String {
    let lines: Vec<String> = lines.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "from odoo import api, fields, models\n\nSTATES = [('draft', 'Draft'), ('done', 'Done')]\n\nclass Order(models.Model):\n    _name = 'shop.order'\n{}",
        lines.concat()
    )
}

/// One class before and after, what that asks for, and a part of the reason.
#[track_caller]
fn becomes(old: &str, new: &str, expected: Way, part: &str) {
    let changes = changes(&[("models/order.py", model(old))], &[("models/order.py", model(new))]);
    let words: Vec<String> = changes.iter().map(|change| format!("{}: {change}", change.way)).collect();
    assert_eq!(way(&changes), expected, "{words:#?}");
    assert!(words.iter().any(|words| words.contains(part)), "{part}: {words:#?}");
}

#[test]
fn code_alone_is_a_reload() {
    becomes(
        "x = fields.Char()\ndef total(self):\n    return 1",
        "x = fields.Char()\ndef total(self):\n    return 2",
        Way::Reload,
        "`total` of `shop.order` has changed",
    );
    becomes("x = fields.Char()", "x = fields.Char()\ndef total(self):\n    return 2", Way::Reload, "`total` of `shop.order` is new");
    becomes("x = fields.Char()", "'''Orders.'''\n# Why not\nx  =  fields.Char( )", Way::Reload, "layout");
    becomes("def total(self):\n    '''One'''\n    return 1", "def total(self):\n    '''Two'''\n    return 1", Way::Reload, "layout");
    becomes("def total(self, tax):\n    return 1", "def total(self, tax=0):\n    return 1", Way::Reload, "`total`");
}

#[test]
fn the_body_of_a_stored_compute_is_code_and_its_dependencies_are_not() {
    let order = "total = fields.Float(compute='_total', store=True)\n@api.depends('lines')\ndef _total(self):\n    ";
    becomes(&format!("{order}self.total = 1"), &format!("{order}self.total = 2"), Way::Reload, "stay as they are");
    becomes(
        &format!("{order}self.total = 1"),
        &format!("{order}self.total = 1").replace("'lines'", "'lines.price'"),
        Way::Update,
        "declared otherwise",
    );
}

#[test]
fn what_is_new_and_may_be_empty_is_an_update() {
    becomes("x = fields.Char()", "x = fields.Char()\ny = fields.Char()", Way::Update, "`y` of `shop.order` is new");
    becomes("x = fields.Char()", "x = fields.Char()\ny = fields.Many2one('res.partner')", Way::Update, "`y`");
    becomes("x = fields.Char()", "x = fields.Char(string='Name', help='Its name')", Way::Update, "`help`");
    becomes("x = fields.Char(index=True)", "x = fields.Char()", Way::Update, "`index`");
    becomes("x = fields.Char(required=True)", "x = fields.Char()", Way::Update, "not required any more");
    becomes("x = fields.Char(default='a')", "x = fields.Char(default='b')", Way::Update, "`default`");
    becomes("_order = 'name'", "_order = 'id'", Way::Update, "`_order`");
    becomes(
        "x = fields.Selection(STATES)",
        "x = fields.Selection(STATES + [('late', 'Late')])",
        Way::UpdateAndHoldWrites,
        "its selection has changed",
    );
    becomes("x = fields.Selection([('a', 'A')])", "x = fields.Selection([('a', 'A'), ('b', 'B')])", Way::Update, "nothing of it is gone");
    becomes("_x = models.Index('(x)')", "_x = models.Index('(x, y)')", Way::Update, "index `_x`");
    becomes(
        "x = fields.Char()",
        "x = fields.Char()\n@api.constrains('x')\ndef _check(self):\n    pass",
        Way::Update,
        "checks what is written",
    );
}

#[test]
fn what_tightens_the_schema_holds_writes() {
    let holds = |old: &str, new: &str, part: &str| becomes(old, new, Way::UpdateAndHoldWrites, part);
    holds("x = fields.Char()", "x = fields.Char()\ny = fields.Char(required=True)", "new and required");
    holds("x = fields.Char()", "x = fields.Char(required=True)", "becomes required");
    holds("x = fields.Char()", "x = fields.Char(required=STRICT)", "becomes required");
    holds("x = fields.Char()", "x = fields.Text()", "another type: Text instead of Char");
    holds("x = fields.Char()", "y = fields.Char()", "`x` of `shop.order` is gone");
    holds("x = fields.Char()", "x = fields.Char(translate=True)", "`translate`");
    holds("x = fields.Char()", "x = fields.Char(company_dependent=True)", "`company_dependent`");
    holds("x = fields.Many2one('a.b')", "x = fields.Many2one('a.c')", "refers to other rows");
    holds("x = fields.Many2one('a.b')", "x = fields.Many2one('a.b', ondelete='cascade')", "`ondelete`");
    holds("x = fields.Float()", "x = fields.Float(digits=(16, 2))", "`digits`");
    holds("x = fields.Char(compute='_x')", "x = fields.Char(compute='_x', store=True)", "stored in another way");
    holds("y = fields.Char()", "y = fields.Char()\nx = fields.Char(related='y', store=True)", "filled for every row");
    holds("x = fields.Selection([('a', 'A'), ('b', 'B')])", "x = fields.Selection([('a', 'A')])", "no b any more");
    holds("_sql_constraints = []", "_sql_constraints = [('u', 'unique(x)', 'Once')]", "new or has changed");
    holds("x = fields.Char()", "x = fields.Char()\n_u = models.Constraint('unique(x)', 'Once')", "`_u` of `shop.order` is new");
    holds("_u = models.Constraint('unique(x)')", "_u = models.Constraint('unique(x, y)')", "`_u` of `shop.order` has changed");
    holds("x = fields.Char()", "x = fields.Char()\n_u = models.UniqueIndex('(x)')", "unique index `_u`");
    holds("x = fields.Char()", "_inherit = 'mail.thread'\nx = fields.Char()", "`_inherit`");
    holds("_auto = True", "_auto = False", "`_auto`");
    holds("x = fields.Char()", "x = fields.Char()\ndef init(self):\n    self.env.cr.execute('…')", "Odoo runs it on the database");
    holds("x = fields.Char()", "x = fields.Char()\nfor n in NAMES:\n    y = n", "cannot be read");
    holds("x = fields.Char()", "x = fields.Char()\ndef add(self):\n    self._add_field('z', fields.Char())", "makes fields");
    holds("x = fields.Char()", "x = fields.Char(**MORE)", "cannot be read from its definition");
    holds("x = fields.Char()", "x = fields.Char()\ny = Special(odd=1)", "cannot be read from its definition");
}

#[test]
fn a_constraint_less_is_an_update() {
    becomes(
        "_sql_constraints = [('u', 'unique(x)', 'Once'), ('v', 'unique(y)', 'Once')]",
        "_sql_constraints = [('v', 'unique(y)', 'Once')]",
        Way::Update,
        "gone",
    );
    becomes("_u = models.Constraint('unique(x)')", "x = 1", Way::Update, "`_u` of `shop.order` is gone");
}

#[test]
fn parts_of_a_view_in_the_database_are_an_update() {
    becomes(
        "_auto = False\ndef _select(self):\n    return 'a'",
        "_auto = False\ndef _select(self):\n    return 'b'",
        Way::Update,
        "part of a view",
    );
    becomes(
        "def init(self):\n    self._make()\ndef _make(self):\n    return 1",
        "def init(self):\n    self._make()\ndef _make(self):\n    return 2",
        Way::Update,
        "part of a view",
    );
}

#[test]
fn a_constant_counts_where_a_field_uses_it_also_in_another_file() {
    let order = "from odoo import fields, models\nfrom .constants import STATES\nfrom . import constants\n\nclass Order(models.Model):\n    _name = 'shop.order'\n    state = fields.Selection(STATES)\n    level = fields.Selection(constants.LEVELS, required=True)\n";
    let constants = |states: &str| format!("STATES = [{states}]\nLEVELS = [('one', 'One')]\n");
    let old = [("models/order.py", order), ("models/constants.py", &*constants("('a', 'A'), ('b', 'B')"))];
    let less = [("models/order.py", order), ("models/constants.py", &*constants("('a', 'A')"))];
    let changes = changes(&old, &less);
    assert_eq!(way(&changes), Way::UpdateAndHoldWrites);
    assert!(
        changes[0].to_string().contains("models/order.py:7: the field `state` of `shop.order`: its selection has no b"),
        "{changes:#?}"
    );
}

#[test]
fn a_class_that_moves_to_another_file_is_the_same() {
    let order = model("x = fields.Char(required=True)\n_u = models.Constraint('unique(x)')");
    let moved = [("models/__init__.py", "from . import sales"), ("models/sales.py", &*order)];
    assert_eq!(way(&changes(&[("models/order.py", &order)], &moved)), Way::Reload);
}

#[test]
fn a_model_whose_file_is_not_imported_any_more_is_gone() {
    let order = model("x = fields.Char()");
    let changes = changes(&[("models/order.py", &order)], &[("models/order.py", &*order), ("models/__init__.py", "")]);
    assert_eq!(way(&changes), Way::UpdateAndHoldWrites);
    assert!(changes[0].text.contains("the model `shop.order` is gone"), "{changes:#?}");
}

#[test]
fn a_new_model_tightens_nothing_and_an_extension_may() {
    let order = model("x = fields.Char()");
    let line = |lines: &str| format!("{order}\n\nclass Line(models.Model):\n{lines}");
    let with = |lines: &str| changes(&[("models/order.py", &order)], &[("models/order.py", &line(lines))]);
    assert_eq!(
        way(&with("    _name = 'shop.line'\n    y = fields.Char(required=True)\n    _u = models.Constraint('unique(y)')\n")),
        Way::Update
    );
    assert_eq!(way(&with("    _inherit = 'res.partner'\n    y = fields.Char()\n")), Way::Update);
    assert_eq!(way(&with("    _inherit = 'res.partner'\n    y = fields.Char(required=True)\n")), Way::UpdateAndHoldWrites);
    assert_eq!(way(&with("    _inherit = ['res.partner', 'mail.thread']\n    _name = 'res.partner'\n")), Way::UpdateAndHoldWrites);
    assert_eq!(way(&with("    _inherit = 'res.partner'\n    def name_get(self):\n        return 1\n")), Way::Reload);
}

#[test]
fn controllers_and_helpers_are_code() {
    let controller = |text: &str| {
        format!(
            "from odoo import http\n\nclass Main(http.Controller):\n    @http.route('/shop')\n    def page(self):\n        return '{text}'\n"
        )
    };
    let changed = changes(&[("models/order.py", controller("one"))], &[("models/order.py", controller("two"))]);
    assert_eq!((way(&changed), changed[0].line), (Way::Reload, Some(3)));
}

#[test]
fn what_runs_when_a_file_is_loaded_and_cannot_be_read_holds_writes() {
    let cases = [
        ("x = 1", "x = 1\nOrder.total = lambda self: 1", Way::UpdateAndHoldWrites),
        ("x = 1", "x = 1\nfor a in B: setattr(C, a, 1)", Way::UpdateAndHoldWrites),
        ("x = 1", "x = ", Way::UpdateAndHoldWrites),
        ("x = 1", "x = 2", Way::Update),
        ("import a", "import a\ntry:\n    import b\nexcept ImportError:\n    b = None", Way::Reload),
        ("import logging", "import logging\n_logger = logging.getLogger(__name__)", Way::Reload),
        ("from a import b", "from a import c", Way::Reload),
    ];
    for (old, new, expected) in cases {
        let changes = changes(&[("models/order.py", old)], &[("models/order.py", new)]);
        assert_eq!(way(&changes), expected, "{new}: {changes:#?}");
    }
}

#[test]
fn data_are_compared_by_record() {
    let data = |records: &str| format!("<odoo>\n{records}\n</odoo>");
    let compare = |old: &str, new: &str| changes(&[("data/data.xml", &data(old))], &[("data/data.xml", &data(new))]);
    let record = "<record id='a' model='res.partner'><field name='name'>A</field></record>";
    let view = "<record id='v' model='ir.ui.view'><field name='arch' type='xml'><form/></field></record>";
    // Order, layout, comments and the module's own name say nothing.
    let same = compare(&format!("{record}{view}"), &format!("<!-- why -->\n{view}\n\n{}", record.replace("id='a'", "id='shop.a'")));
    assert_eq!(way(&same), Way::Nothing, "{same:#?}");
    let cases = [
        (record.to_owned(), record.replace(">A<", ">B<"), Way::Update, "the record of res.partner `a` has changed"),
        (record.to_owned(), format!("{record}{view}"), Way::Update, "the view `v` is new"),
        (format!("{record}{view}"), record.to_owned(), Way::Update, "the view `v` is gone"),
        (format!("{record}{view}"), view.to_owned(), Way::UpdateAndHoldWrites, "the update deletes data"),
        (format!("<data noupdate='1'>{view}</data>"), String::new(), Way::UpdateAndHoldWrites, "was not to be updated"),
        (view.to_owned(), format!("{view}<function model='a' name='b'/>"), Way::UpdateAndHoldWrites, "it changes data when it is loaded"),
        (view.to_owned(), format!("{view}<delete id='x' model='a'/>"), Way::UpdateAndHoldWrites, "a deletion"),
        (view.to_owned(), "<record>".to_owned(), Way::UpdateAndHoldWrites, "cannot be read (mismatched tag)"),
    ];
    for (old, new, expected, part) in cases {
        let changes = compare(&old, &new);
        assert_eq!(way(&changes), expected, "{changes:#?}");
        assert!(changes.iter().any(|change| change.text.contains(part)), "{part}: {changes:#?}");
    }
}

#[test]
fn rights_are_compared_line_by_line() {
    let compare = |old: &str, new: &str| changes(&[("security/ir.model.access.csv", old)], &[("security/ir.model.access.csv", new)]);
    let (header, one, two) = ("id,name,perm_read\n", "a,A,1\n", "b,B,1\n");
    assert_eq!(way(&compare(&format!("{header}{one}{two}"), &format!("{header}{two}{one}"))), Way::Nothing);
    let changed = compare(&format!("{header}{one}"), &format!("{header}{one}{two}"));
    assert_eq!((way(&changed), &*changed[0].text), (Way::Update, "the record of ir.model.access `b` is new"));
}

#[test]
fn each_kind_of_file_has_its_way() {
    let cases = [
        ("static/src/a.js", Way::Reload),
        ("static/src/a.xml", Way::Reload),
        ("i18n/de.po", Way::Nothing),
        ("i18n/shop.pot", Way::Nothing),
        ("migrations/1.1/pre-a.py", Way::UpdateAndHoldWrites),
        ("tests/test_a.py", Way::Nothing),
        ("README.rst", Way::Nothing),
        ("data/neutralize.sql", Way::Nothing),
        ("data/a.sql", Way::UpdateAndHoldWrites),
        ("data/loaded_by_code.xml", Way::Update),
        ("data/odd.json", Way::UpdateAndHoldWrites),
    ];
    for (path, expected) in cases {
        let changes = changes(&[(path, "<a/>")], &[(path, "<b/>")]);
        assert_eq!(way(&changes), expected, "{path}: {changes:#?}");
    }
}

#[test]
fn a_picture_that_a_menu_keeps_is_data() {
    let menu = "<odoo><menuitem id='m' web_icon='shop,static/icon.png'/></odoo>";
    let files = |icon| [("views/views.xml", menu), ("static/icon.png", icon)];
    let changes = changes(&files("one"), &files("two"));
    assert_eq!(way(&changes), Way::Update, "{changes:#?}");
}

#[test]
fn the_manifest_is_compared_key_by_key() {
    let compare = |old: &str, new: &str| changes(&[("__manifest__.py", old)], &[("__manifest__.py", new)]);
    let cases = [
        ("{'version': '1.0'}", "{'version': '1.1'}", Way::Update, "the version is 1.1 instead of 1.0"),
        ("{'depends': ['base']}", "{'depends': ['base', 'sale']}", Way::Update, "depends on sale, too"),
        ("{'assets': {}}", "{'assets': {'web.assets_backend': ['shop/static/a.js']}}", Way::Reload, "assets"),
        ("{'summary': 'a'}", "{'summary': 'b'}", Way::Nothing, "only describes"),
        ("{}", "{'post_init_hook': 'fill'}", Way::UpdateAndHoldWrites, "`post_init_hook`"),
        ("{}", "{'odd': 1}", Way::Update, "`odd`"),
    ];
    for (old, new, expected, part) in cases {
        let changes = compare(old, new);
        assert_eq!(way(&changes), expected, "{changes:#?}");
        assert!(changes.iter().any(|change| change.text.contains(part)), "{part}: {changes:#?}");
    }
    assert!(compare("{'version': '1.0'} # a", "{'version': '1.0'}").is_empty());
}

#[test]
fn a_hook_that_changes_holds_writes() {
    let files = |body: &str| {
        [
            ("__manifest__.py", "{'post_init_hook': 'fill'}".to_owned()),
            ("__init__.py", "from .hooks import fill".to_owned()),
            ("hooks.py", format!("def fill(env):\n    {body}\n")),
        ]
    };
    assert_eq!(way(&changes(&files("pass"), &files("env.cr.commit()"))), Way::UpdateAndHoldWrites);
}

#[test]
fn what_cannot_be_taken_apart_is_unreadable() {
    let modules = vec![(
        "shop".parse().unwrap(),
        Files {
            manifest: String::new(),
            texts: BTreeMap::from([("a.py".to_owned(), String::new())]),
            all: BTreeMap::from([("a.py".to_owned(), FileDescription { digest: "1".to_owned(), content: Content::Opaque })]),
        },
    )];
    let described = put_together(modules, None).into_values().next().unwrap();
    assert!(matches!(described.files["a.py"].content, Content::Unreadable { .. }));
    assert_eq!(way(&plan::compare("shop", &described, &described, &everything())), Way::UpdateAndHoldWrites);
}

#[test]
fn a_module_to_install_says_what_it_does_to_what_is_there() {
    let appears = |lines: &str| plan::appears("shop", &describe(&[("models/order.py", model(lines))]));
    assert!(appears("x = fields.Char(required=True)\n_u = models.Constraint('unique(x)')").is_empty());
    let text = model("x = fields.Char()")
        + "\nclass Partner(models.Model):\n    _inherit = 'res.partner'\n    code = fields.Char(required=True)\n";
    let changes = plan::appears("shop", &describe(&[("models/order.py", text)]));
    assert!(changes.len() == 1 && changes[0].text.contains("new and required"), "{changes:#?}");
    let hook = plan::appears("shop", &describe(&[("__manifest__.py", "{'post_init_hook': 'fill'}")]));
    assert!(hook.iter().any(|change| change.text.contains("`post_init_hook`")), "{hook:#?}");
}

/// What a definition depends on, in a file of its own, before and after.
#[track_caller]
fn depends(field: &str, old: &str, new: &str, expected: Way, part: &str) {
    let order = format!(
        "from odoo import fields, models\nfrom . import limits\nfrom .limits import *\nfrom .limits import Limits, Kind, sizes\n\
         class Order(models.Model):\n    _name = 'shop.order'\n    x = {field}\n"
    );
    let files = |limits: &str| {
        let limits = format!("from enum import Enum, IntEnum, auto\n{limits}\n");
        [
            ("models/__init__.py", "from . import order, limits\n".to_owned()),
            ("models/order.py", order.clone()),
            ("models/limits.py", limits),
        ]
    };
    let changes = changes(&files(old), &files(new));
    let words: Vec<String> = changes.iter().map(|change| format!("{}: {change}", change.way)).collect();
    assert_eq!(way(&changes), expected, "{field}: {words:#?}");
    assert!(words.iter().any(|words| words.contains(part)), "{part}: {words:#?}");
}

#[test]
fn a_definition_is_followed_into_classes_enums_and_functions_of_other_files() {
    let hold = Way::UpdateAndHoldWrites;
    let limits = "class Limits:\n    NOTE = 20\n    BIG = False\n    class Inner:\n        DEEP = 1\nclass Kind(Enum):\n    A = 'a'\n    B = 'b'\n\
                  \n    @classmethod\n    def choices(cls):\n        'Them.'\n        return [(one.value, one.name) for one in cls]\n\
                  class More(Limits):\n    pass\nSIZE = 3\ndef twice(n):\n    return n * 2\ndef sizes():\n    return twice(SIZE)\n";
    let changed = |from: &str, to: &str| {
        assert!(limits.contains(from), "{from}");
        limits.replace(from, to)
    };
    depends("fields.Char(size=Limits.NOTE)", limits, &changed("NOTE = 20", "NOTE = 60"), hold, "`size`");
    depends("fields.Char(size=limits.Limits.NOTE)", limits, &changed("NOTE = 20", "NOTE = 60"), hold, "`size`");
    depends("fields.Char(size=More.NOTE)", limits, &changed("NOTE = 20", "NOTE = 60"), hold, "`size`");
    depends("fields.Char(translate=Limits.BIG)", limits, &changed("BIG = False", "BIG = True"), hold, "`translate`");
    depends("fields.Char(size=Limits.Inner.DEEP)", limits, &changed("DEEP = 1", "DEEP = 2"), hold, "`size`");
    for field in [
        "fields.Selection([(k.value, k.name) for k in Kind])",
        "fields.Selection(Kind.choices())",
        "fields.Selection(selection=limits.Kind.choices())",
    ] {
        depends(field, limits, &changed("B = 'b'", "B = 'b'\n    C = 'c'"), hold, "its selection has changed");
    }
    depends("fields.Char(size=sizes())", limits, &changed("return n * 2", "return n * 3"), hold, "`size`");
    depends("fields.Char(size=sizes())", limits, &changed("SIZE = 3", "SIZE = 4"), hold, "`size`");
    depends("fields.Char(default=Kind.A.value)", limits, &changed("A = 'a'", "A = 'aa'"), Way::Update, "`default`");
    // What other modules may use, and what nobody defines anything with.
    depends("fields.Char()", limits, &changed("NOTE = 20", "NOTE = 60"), Way::Update, "the constant `Limits.NOTE`");
    depends("fields.Char()", limits, &changed("return n * 2", "return n * 3"), Way::Reload, "the function `twice`");
    depends("fields.Selection(Kind.choices())", limits, &changed("'Them.'", "'All of them.'"), Way::Reload, "layout");
    let page = "class Page(http.Controller):\n    SIZE = 1\n";
    depends("fields.Char()", page, &page.replace('1', "2"), Way::Reload, "the class `Page` has changed");
}

#[test]
fn definitions_that_use_packages_name_them() {
    let order = "import json\nimport harbour\nfrom pier.sizes import BIG as B\nfrom odoo.tools import ormcache\nimport unused\n\
                 from odoo import fields, models\nTALL = B + 1\nclass Order(models.Model):\n    _name = 'shop.order'\n    x = fields.Char(size=TALL)\n\
                 \n    y = fields.Char(help=json.dumps([]))\n\n    def run(self):\n        return harbour.run(unused)\n";
    assert_eq!(describe(&[("models/order.py", order)]).packages, ["pier"]);
}

const PO: &str = "msgid \"\"\nmsgstr \"Language: fr\\n\"\n\n#. module: shop\n#: model:shop.order,name:shop.first\nmsgid \"The gate\"\nmsgstr \"La porte\"\n\n\
                  #: model_terms:ir.ui.view,arch_db:shop.page\nmsgid \"\"\n\"Low \"\n\"tide\"\nmsgstr \"Maree\"\n\n#: code:addons/shop/a.py:0\nmsgid \"Go\"\nmsgstr \"Va\"\n";

#[test]
fn a_translation_asks_for_what_it_changes_in_this_database() {
    let states = |old: &str, new: &str| (describe(&[("i18n/fr.po", old)]), describe(&[("i18n/fr.po", new)]));
    let speaks = |languages: &[&str]| Database {
        languages: Some(languages.iter().map(|language| (*language).to_owned()).collect()),
        has_demo: false,
    };
    let french = speaks(&["en_US", "fr_BE"]);
    let ways = |old: &str, new: &str, database: &Database| {
        let (old, new) = states(old, new);
        way(&plan::compare("shop", &old, &new, database))
    };
    let corrected = PO.replace("La porte", "L'écluse").replace("Maree", "Marée \\\"basse\\\"");
    assert_eq!(ways(PO, &corrected, &french), Way::Update);
    assert_eq!(ways(PO, &corrected, &speaks(&["en_US", "de_DE"])), Way::Nothing);
    assert_eq!(ways(PO, &PO.replace("Va", "Allez"), &french), Way::Reload);
    assert_eq!(ways(PO, &PO.replace("Language: fr", "Language: fr_FR"), &french), Way::Nothing);
    assert_eq!(ways(PO, &PO.replace("msgstr \"Maree\"", "msgstr \"\""), &french), Way::Nothing);
    assert_eq!(ways(&PO.replace("msgstr \"Maree\"", "msgstr \"\""), PO, &french), Way::Update);
    let (old, new) = states(PO, &corrected);
    let correction = |model: &str, field: &str, record: &str, term: Option<&str>, before: &str| Correction {
        language: "fr".to_owned(),
        model: model.to_owned(),
        field: field.to_owned(),
        record: record.to_owned(),
        term: term.map(str::to_owned),
        before: before.to_owned(),
    };
    assert_eq!(
        plan::corrections(&old, &new, &french),
        [
            correction("shop.order", "name", "shop.first", None, "La porte"),
            correction("ir.ui.view", "arch_db", "shop.page", Some("Low tide"), "Maree"),
        ]
    );
    assert!(plan::corrections(&old, &new, &speaks(&["en_US"])).is_empty());
    // The English has changed with it: the same record.
    let (old, new) = states(PO, &PO.replace("The gate", "The sluice").replace("La porte", "L'écluse"));
    assert_eq!(plan::corrections(&old, &new, &french)[0].before, "La porte");
}

#[test]
fn a_template_of_translations_says_what_there_is_as_for_odoo() {
    let template = PO.replace("La porte", "").replace("model:shop.order,name:shop.first", "model:shop.order,name:shop.second");
    let described = describe(&[("i18n/fr.po", PO), ("i18n/shop.pot", template.as_str())]);
    let Content::Translations(file) = &described.files["i18n/fr.po"].content else { panic!("{described:?}") };
    assert_eq!(file.words["model:shop.order,name:shop.second\n"], "La porte");
    assert!(!file.words.keys().any(|place| place.contains("shop.first")));
}

#[test]
fn demo_data_ask_for_nothing_where_there_are_none() {
    let manifest = |more: &str| format!("{{'data': ['data/data.xml'], 'demo': ['demo/demo.xml'{more}]}}");
    let data = |name: &str| format!("<odoo><record id='a' model='shop.order'><field name='name'>{name}</field></record></odoo>");
    let picture = "<odoo><record id='b' model='shop.order'><field name='image' type='base64' file='shop/demo/a.bin'/></record></odoo>";
    let state = |demo: &str, bin: &str, more: &str| {
        describe(&[
            ("__manifest__.py", manifest(more)),
            ("data/data.xml", data("a")),
            ("demo/demo.xml", demo.to_owned()),
            ("demo/picture.xml", picture.to_owned()),
            ("demo/a.bin", bin.to_owned()),
        ])
    };
    let (old, new) = (state(&data("one"), "1", ", 'demo/picture.xml'"), state(&data("two"), "2", ", 'demo/picture.xml'"));
    let without = Database { languages: None, has_demo: false };
    assert_eq!(way(&plan::compare("shop", &old, &new, &everything())), Way::Update);
    let changes = plan::compare("shop", &old, &new, &without);
    assert_eq!(way(&changes), Way::Nothing, "{changes:#?}");
    assert!(changes.iter().all(|change| change.text.contains("which this database does not have")), "{changes:#?}");
    assert_eq!(way(&plan::compare("shop", &old, &state(&data("one"), "1", ""), &without)), Way::Nothing);
}

#[test]
fn a_hook_says_which_words_it_knows() {
    let described = describe(&[
        ("__manifest__.py", "{'pre_init_hook': 'take_over'}"),
        ("__init__.py", "from .hooks import take_over"),
        ("hooks.py", "OLD = 'ferry_booking'\n\ndef take_over(env):\n    env.cr.execute(\"UPDATE x SET a = 'new' WHERE b = %s\", [OLD])\n"),
    ]);
    assert!(
        ["UPDATE", "ferry_booking", "new"].iter().all(|word| described.hook_words.iter().any(|known| known == word)),
        "{:?}",
        described.hook_words
    );
    assert!(describe(&[("__init__.py", "OLD = 'x'")]).hook_words.is_empty());
}
