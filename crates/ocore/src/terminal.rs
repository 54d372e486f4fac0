//! What the commands print: results to standard output, the rest to standard error.
//!
//! `println!` panics when its reader has gone (`ocore env list | head -1`) or the disk is full; the crate's lints keep it out.

use std::{
    fmt,
    io::{self, ErrorKind, Write},
    process,
};

/// What a shell sees of a program that SIGPIPE has ended.
const READER_GONE: i32 = 128 + 13;

/// A line of the result.
macro_rules! out {
    () => { $crate::terminal::write("\n") };
    ($($text:tt)+) => { $crate::terminal::line(format_args!($($text)+)) };
}

/// A line beside the result. Nobody needs to read it.
macro_rules! note {
    ($($text:tt)+) => { $crate::terminal::beside(format_args!("{}\n", format_args!($($text)+))) };
}

pub(crate) fn line(text: fmt::Arguments<'_>) {
    ended(writeln!(io::stdout().lock(), "{text}"));
}

/// Text as it is. Ends the program when there is no reader any more, as the signal would: what it was to say has not been said, so this is no success.
pub(crate) fn write(text: &str) {
    ended(io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()));
}

pub(crate) fn beside(text: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

fn ended(written: io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => process::exit(READER_GONE),
        Err(error) => {
            note!("ocore: cannot print: {error}");
            process::exit(1);
        }
    }
}
