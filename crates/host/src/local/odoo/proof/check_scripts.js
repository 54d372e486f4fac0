// Says which scripts a browser would not read. They are compiled as a browser does it (V8), and none of them is run.
//
// Standard input: {"scripts": [{"name", "text"}], "pages": [{"scripts": [name], "own": [module]}]}, standard output:
// {"broken": [{"name", "line", "message"}], "undefined": [{"module", "needs"}]}; a line of what is inside the text, from 1.
// "undefined" are modules of JavaScript that a module of `own` imports and no script of its page defines.
"use strict";
const vm = require("vm");

const blank = (text) => text.replace(/[^\n]/g, "");

// The text of a JavaScript module as a script, line for line.
function withoutImports(text) {
    return text
        .replace(/^[ \t]*import\s*(?:[\w$*{}\s,]+?\bfrom\s*)?(["'])[^"'\n]*\1[ \t]*;?/gm, blank)
        .replace(/^[ \t]*export\s*(?:\*[\s\w$]*|\{[^}]*\})\s*(?:from\s*(["'])[^"'\n]*\1)?[ \t]*;?/gm, blank)
        .replace(/^([ \t]*)export\s+default\b/gm, "$1void ")
        .replace(/^([ \t]*)export\b/gm, "$1");
}

function fault(name, text) {
    try {
        new vm.Script(text, { filename: "script" });
        return null;
    } catch (error) {
        const place = /^script:(\d+)/.exec(error.stack || "");
        return { name, line: place ? Number(place[1]) : null, message: String(error.message).slice(0, 500) };
    }
}

function undefinedModules(page, texts) {
    const defined = new Set();
    const needed = [];
    const define = /\bodoo\.define\(\s*(["'])([^"'\n]+)\1\s*,\s*(?:\[([^\]]*)\])?/g;
    for (const text of page.scripts.map((name) => texts.get(name) || "")) {
        for (const [, , module, list] of text.matchAll(define)) {
            defined.add(module);
            const own = page.own.some((name) => module.startsWith(`@${name}/`));
            for (const [, , needs] of own && list ? list.matchAll(/(["'])([^"'\n]+)\1/g) : []) {
                needed.push({ module, needs });
            }
        }
    }
    return needed.filter(({ needs }) => !defined.has(needs));
}

let input = "";
process.stdin.setEncoding("utf8");
process.stdin.on("data", (piece) => (input += piece));
process.stdin.on("end", () => {
    const { scripts, pages } = JSON.parse(input);
    const broken = [];
    for (const { name, text } of scripts) {
        const isModule = /^[ \t]*(?:import|export)\b/m.test(text);
        const found = fault(name, isModule ? withoutImports(text) : text);
        if (found) {
            broken.push(found);
        }
    }
    const texts = new Map(scripts.map(({ name, text }) => [name, text]));
    const missing = pages.flatMap((page) => undefinedModules(page, texts));
    process.stdout.write(JSON.stringify({ broken, undefined: missing }));
});
