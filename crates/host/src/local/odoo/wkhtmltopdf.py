#!/usr/bin/env python3
"""wkhtmltopdf as Odoo calls it, for a machine whose own is built without the patched Qt, as Debian's is: that one prints neither headers nor footers, and
one document at a time. What it cannot do is put together here from what it can.

Each document is printed by itself; then the headers of all pages as pages of their own, and the footers; these are laid over the pages. Where the
machine's program has the patched Qt, or nothing of this is asked for, it is run as it is.

As the real one does, it gives a header its page by the address: `?page=2&topage=3&sitepage=…&webpage=<the document>`. A header begins as far above the
text as `--header-spacing` says, a footer at the text's end. Each document's first page gets an entry in the outline, by which Odoo takes the file apart
again when each record is to have its own.
"""
import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

NAME = "wkhtmltopdf"
PATCHED = "(with patched qt)"
# Options with one value, and with two (wkhtmltopdf --extended-help).
ONE = set(
    "--copies --cookie-jar --dpi -d --image-dpi --image-quality --log-level --margin-bottom -B --margin-left -L --margin-right -R --margin-top -T"
    " --orientation -O --page-height --page-size -s --page-width --title --dump-outline --outline-depth --allow --cache-dir --checkbox-checked-svg"
    " --checkbox-svg --encoding --javascript-delay --load-error-handling --load-media-error-handling --minimum-font-size --page-offset --password"
    " --proxy -p --bypass-proxy-for --radiobutton-checked-svg --radiobutton-svg --run-script --ssl-crt-path --ssl-key-password --ssl-key-path"
    " --user-style-sheet --username --viewport-size --window-status --zoom --header-html --footer-html --header-spacing --footer-spacing --header-center"
    " --header-left --header-right --header-font-name --header-font-size --footer-center --footer-left --footer-right --footer-font-name"
    " --footer-font-size".split()
)
TWO = set("--cookie --custom-header --post --post-file --replace".split())
# What only the patched Qt knows, and Odoo asks for.
UNKNOWN_FLAGS = {"--header-line", "--footer-line", "--no-header-line", "--no-footer-line", "--disable-smart-shrinking", "--enable-smart-shrinking"}
# Of other kinds of input, which are left to the program.
OBJECTS = {"toc", "cover", "page"}
# In millimetres, as the program has them where nothing is said. Without the patched Qt it takes margins only when it is told all four.
MARGIN = 10.0
MARGINS = {"top": ("--margin-top", "-T"), "bottom": ("--margin-bottom", "-B"), "left": ("--margin-left", "-L"), "right": ("--margin-right", "-R")}
# WebKit lays a page out that much wider than the paper, and up to twice as wide for what does not fit. Odoo's reports are at least so wide, in pixels.
SHRINKS, SHRINKS_AT_MOST, REPORT_WIDTH = 1.3, 2.0, 992
UNITS = {"mm": 1.0, "cm": 10.0, "in": 25.4, "px": 25.4 / 96, "pt": 25.4 / 72}
# Frames that one process lays out.
AT_ONCE = 50
BAND = """<!DOCTYPE html><html><head><meta charset="utf-8"><style>body {{margin: 0; min-width: {width}px}}
div {{height: {height}mm; overflow: hidden; page-break-after: always}} iframe {{width: 100%; height: {height}mm; border: 0; margin: 0}}</style></head><body>{frames}</body></html>"""
FRAME = '<div><iframe scrolling="no" src="{address}"></iframe></div>'


class Failed(Exception):
    """With what the program said and its exit code."""

    def __init__(self, code):
        super().__init__(code)
        self.code = code


def main(arguments):
    program = find_program()
    if program is None:
        sys.exit(f"{NAME} is not installed on this machine")
    # It shows nothing, and there is no screen.
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    call = parse(arguments)
    if call is None or not call.needs_help() or PATCHED in version(program):
        os.execv(program, [program, *arguments])
    return Print(program, call).run()


def find_program():
    """The machine's own: the next one of that name in the search path."""
    here = os.path.dirname(os.path.abspath(__file__))
    places = [place for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.realpath(place or ".") != os.path.realpath(here)]
    return shutil.which(NAME, path=os.pathsep.join(places))


def version(program):
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout


class Call:
    """What is asked for: options in their order, documents, and where the result goes."""

    def __init__(self):
        self.options, self.documents, self.target, self.values = [], [], None, {}

    def needs_help(self):
        return len(self.documents) > 1 or "--header-html" in self.values or "--footer-html" in self.values

    def length(self, *names):
        """In millimetres."""
        for name in names:
            if name in self.values:
                text = self.values[name].strip()
                unit = next((unit for unit in UNITS if text.endswith(unit)), "mm")
                return float(text.removesuffix(unit)) * UNITS[unit]
        return None


def parse(arguments):
    """`None` for what is not understood whole."""
    call, rest = Call(), list(arguments)
    inputs = []
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            inputs.append(word)
            continue
        count = 1 if word in ONE else 2 if word in TWO else 0
        values, rest = rest[:count], rest[count:]
        if len(values) < count:
            return None
        if count == 1:
            call.values[word] = values[0]
        if not word.startswith(("--header-", "--footer-")) and word not in UNKNOWN_FLAGS:
            call.options.append((word, *values))
    if len(inputs) < 2 or "-" in inputs or OBJECTS.intersection(inputs):
        return None
    *call.documents, call.target = inputs
    return call


class Print:
    def __init__(self, program, call):
        self.program, self.call, self.code = program, call, 0
        lengths = {side: call.length(*names) for side, names in MARGINS.items()}
        self.margins = {side: MARGIN if length is None else length for side, length in lengths.items()}
        told = {name for names in MARGINS.values() for name in names}
        self.options = [option for option in call.options if option[0] not in told]

    def run(self):
        with tempfile.TemporaryDirectory(prefix="report.parts.") as directory:
            self.directory = directory
            try:
                return self.make()
            except Failed as failed:
                return failed.code

    def make(self):
        from_library = library()
        bodies = [os.path.join(self.directory, f"body-{number}.pdf") for number in range(len(self.call.documents))]
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(self.print_document, self.call.documents, bodies))
        readers = [from_library.PdfReader(body) for body in bodies]
        counts = [len(reader.pages) for reader in readers]
        top, bottom = self.margins["top"], self.margins["bottom"]
        first = readers[0].pages[0].mediabox
        size = (float(first.width), float(first.height))
        begin = max(0.0, top - (self.call.length("--header-spacing") or top))
        header = self.print_band("--header-html", counts, size, top - begin)
        footer = self.print_band("--footer-html", counts, size, bottom)
        writer = from_library.PdfWriter()
        number, firsts = 0, []
        for reader in readers:
            firsts.append(number)
            for page in reader.pages:
                height = float(page.mediabox.height)
                for band, lower_edge in ((header, height - points(top)), (footer, 0.0)):
                    if band is not None:
                        page.merge_transformed_page(band[number], from_library.Transformation().translate(0, lower_edge))
                writer.add_page(page)
                number += 1
        outline(from_library, writer, firsts)
        with open(self.call.target, "wb") as file:
            writer.write(file)
        return self.code

    def convert(self, options, source, target):
        words = [word for option in options for word in option]
        done = subprocess.run([self.program, *words, source, target], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
        sys.stderr.write(done.stderr)
        if done.returncode not in (0, 1) or not os.path.exists(target) or os.path.getsize(target) == 0:
            raise Failed(done.returncode or 1)
        # One that lacks an image, say, is printed all the same.
        self.code = max(self.code, done.returncode)

    def print_document(self, source, target):
        self.convert(self.options + self.margin_options(self.margins), source, target)

    def margin_options(self, margins):
        return [(MARGINS[side][0], f"{length}mm") for side, length in margins.items()]

    def print_band(self, option, counts, size, height):
        """The headers or footers of all pages, a page each; `None` where there are none."""
        source = self.call.values.get(option)
        if source is None or height <= 0:
            return None
        pages, total, number = [], sum(counts), 0
        for document, count in zip(self.call.documents, counts):
            for page in range(1, count + 1):
                number += 1
                pages.append(
                    {
                        "page": number,
                        "frompage": 1,
                        "topage": total,
                        "sitepage": page,
                        "sitepages": count,
                        "webpage": document,
                        "section": "",
                        "subsection": "",
                        "subsubsection": "",
                        "title": "",
                        "doctitle": "",
                    }
                )
        found = []
        for begin in range(0, total, AT_ONCE):
            part = pages[begin : begin + AT_ONCE]
            name = f"{option.strip('-')}-{begin}"
            html, target = (os.path.join(self.directory, f"{name}.{kind}") for kind in ("html", "pdf"))
            address = "file://" + urllib.parse.quote(os.path.abspath(source))
            frames = "".join(
                FRAME.format(address=f"{address}?{urllib.parse.urlencode(page, quote_via=urllib.parse.quote, safe='/')}".replace("&", "&amp;")) for page in part
            )
            with open(html, "w", encoding="utf-8") as file:
                file.write(BAND.format(width=REPORT_WIDTH, height=self.laid_out(height, size), frames=frames))
            self.convert(self.band_options(source, size, height), html, target)
            printed = library().PdfReader(target).pages
            if len(printed) < len(part):
                raise Failed(1)
            found.extend(printed[number] for number in range(len(part)))
        return found

    def band_options(self, source, size, height):
        """Of the page, all but its format; the frames lie in files that the outer one names."""
        replaced = {"--page-size", "-s", "--page-width", "--page-height", "--orientation", "-O", "--copies"}
        replaced |= {"--outline", "--dump-outline", "--outline-depth"}
        options = [option for option in self.options if option[0] not in replaced]
        options += [("--page-width", f"{millimetres(size[0]):.2f}mm"), ("--page-height", f"{height:.2f}mm")]
        return options + self.margin_options({**self.margins, "top": 0, "bottom": 0}) + [("--allow", os.path.abspath(source))]

    def laid_out(self, height, size):
        """How high something has to be laid out to be so high on paper; a little less, so that rounding makes no page more."""
        room = (millimetres(size[0]) - self.margins["left"] - self.margins["right"]) / 25.4 * 96
        return 0.98 * height * min(SHRINKS_AT_MOST, max(SHRINKS, REPORT_WIDTH / max(room, 1)))


def points(length):
    return length / 25.4 * 72


def millimetres(length):
    return length / 72 * 25.4


def library():
    """Odoo brings it, under its new or its old name."""
    try:
        import pypdf
    except ImportError:
        import PyPDF2 as pypdf
    return pypdf


def outline(from_library, writer, firsts):
    """Named destinations with page numbers, as the patched Qt writes them."""
    generic = from_library.generic
    name, number, text = generic.NameObject, generic.NumberObject, generic.TextStringObject
    destinations, entries = generic.DictionaryObject(), []
    for place, first in enumerate(firsts):
        label = f"/document-{place}"
        destinations[name(label)] = generic.ArrayObject([number(first), name("/Fit")])
        entry = generic.DictionaryObject({name("/Title"): text(f"{place + 1}"), name("/Dest"): name(label)})
        entries.append(writer._add_object(entry))
    root = generic.DictionaryObject({name("/Type"): name("/Outlines"), name("/First"): entries[0], name("/Last"): entries[-1], name("/Count"): number(len(entries))})
    parent = writer._add_object(root)
    for place, entry in enumerate(entries):
        found = entry.get_object()
        found[name("/Parent")] = parent
        if place > 0:
            found[name("/Prev")] = entries[place - 1]
        if place + 1 < len(entries):
            found[name("/Next")] = entries[place + 1]
    writer._root_object[name("/Outlines")] = parent
    writer._root_object[name("/Dests")] = writer._add_object(destinations)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
