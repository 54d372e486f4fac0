//! Python tracebacks, read: the exceptions of a chain with the places that they passed through.

/// One exception of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raised {
    /// Outermost call first.
    pub(crate) frames: Vec<Frame>,
    /// With its package: `odoo.exceptions.UserError`.
    pub(crate) class: String,
    /// All lines of the message.
    pub(crate) message: String,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) file: String,
    pub(crate) line: u32,
}

impl Raised {
    /// `UserError` of `odoo.exceptions.UserError`.
    pub(crate) fn short_class(&self) -> &str {
        self.class.rsplit('.').next().unwrap_or(&self.class)
    }

    pub(crate) fn first_line(&self) -> &str {
        self.message.lines().next().unwrap_or_default().trim()
    }
}

/// The exceptions of a chain, the cause first and the one that was seen last; empty when the lines hold no traceback.
pub(crate) fn parse(lines: &[String]) -> Vec<Raised> {
    let mut chain = Vec::new();
    let mut current: Option<Raised> = None;
    for line in lines {
        if line.starts_with("Traceback (most recent call last)") {
            chain.extend(current.take().filter(|raised| !raised.class.is_empty()));
            current = Some(Raised { frames: Vec::new(), class: String::new(), message: String::new() });
            continue;
        }
        let Some(raised) = current.as_mut() else { continue };
        if !raised.class.is_empty() {
            raised.message.push('\n');
            raised.message.push_str(line);
        } else if let Some(frame) = parse_frame(line) {
            raised.frames.push(frame);
        } else if let Some((class, message)) = parse_exception(line) {
            raised.class = class;
            raised.message = message;
        }
    }
    chain.extend(current.filter(|raised| !raised.class.is_empty()));
    for raised in &mut chain {
        let message = CHAIN_LINKS.iter().fold(raised.message.as_str(), |message, link| message.split(link).next().unwrap_or_default());
        raised.message = message.trim_end().to_owned();
    }
    chain
}

/// What Python writes between two exceptions of a chain.
const CHAIN_LINKS: [&str; 2] = [
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
];

/// `  File "/a/b.py", line 9, in method`, and the same without `in` above a syntax error.
fn parse_frame(line: &str) -> Option<Frame> {
    let (file, rest) = line.trim_start().strip_prefix("File \"")?.split_once("\", line ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some(Frame { file: file.to_owned(), line: digits.parse().ok()? })
}

/// `package.Class: message` or `Class`, not indented.
fn parse_exception(line: &str) -> Option<(String, String)> {
    let (class, message) = line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""));
    let is_name = class.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && class.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.'));
    is_name.then(|| (class.to_owned(), message.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_chain_gives_the_cause_first_and_each_message_without_the_words_between() {
        let chain = parse(&lines(
            "Traceback (most recent call last):\n  File \"/a.py\", line 3, in f\n    g()\n    ^^^\nValueError: one\ntwo\n\nThe above exception was the \
             direct cause of the following exception:\n\nTraceback (most recent call last):\n  File \"/b.py\", line 4, in h\npackage.Wrapped: three\n",
        ));
        assert_eq!(chain.len(), 2);
        assert_eq!((chain[0].class.as_str(), chain[0].message.as_str()), ("ValueError", "one\ntwo"));
        assert_eq!(chain[1].frames, [Frame { file: "/b.py".to_owned(), line: 4 }]);
        assert_eq!((chain[1].short_class(), chain[1].first_line()), ("Wrapped", "three"));
    }

    #[test]
    fn an_exception_without_a_message_is_read_too() {
        let chain = parse(&lines("Traceback (most recent call last):\n  File \"/a.py\", line 3, in f\nKeyboardInterrupt"));
        assert_eq!(chain[0].class, "KeyboardInterrupt");
        assert!(parse(&lines("nothing here")).is_empty());
    }
}
