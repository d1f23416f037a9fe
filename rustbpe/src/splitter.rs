//! Cuts text into the pieces inside which BPE merges.
//!
//! The default pattern has a hand-written splitter driven by a table of character classes; any other pattern goes
//! through `fancy_regex`, the engine tiktoken uses. The table is built from the same Unicode data as that engine's.

use std::sync::OnceLock;

/// Upstream's pattern: GPT-4's with digits in groups of one or two.
pub const DEFAULT_PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

/// One class a code point; an array, so that looking up an ASCII character needs no check of bounds.
type Classes = [u8; 0x110000];

const OTHER: u8 = 0;
const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 3; // white space other than CR and LF
const NEWLINE: u8 = 4; // CR and LF

pub enum Splitter {
    Table(&'static Classes),
    Regex(Box<fancy_regex::Regex>),
}

impl Splitter {
    /// `None` means the default pattern.
    pub fn new(pattern: Option<&str>) -> Result<Self, String> {
        match pattern {
            None | Some(DEFAULT_PATTERN) => Ok(Splitter::Table(classes())),
            Some(pattern) => Self::regex(pattern),
        }
    }

    /// The general engine, for any pattern (the tests hold the table against it).
    pub fn regex(pattern: &str) -> Result<Self, String> {
        match fancy_regex::Regex::new(pattern) {
            Ok(regex) => Ok(Splitter::Regex(Box::new(regex))),
            Err(error) => Err(format!("the split pattern does not compile: {error}")),
        }
    }

    /// Cuts a long text into parts of at least `size` bytes that split as the whole text does, for several threads.
    ///
    /// The default pattern never lets a piece go on from a letter to something else, and looks ahead only over white
    /// space: behind the last letter of a word is always a seam. Of other patterns nothing is known: one part.
    pub fn parts<'t>(&self, text: &'t str, size: usize) -> impl Iterator<Item = &'t str> {
        let classes = match self {
            Splitter::Table(classes) => Some(*classes),
            Splitter::Regex(_) => None,
        };
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let end = classes.map_or(rest.len(), |classes| seam(classes, rest, size));
            let (part, tail) = rest.split_at(end);
            rest = tail;
            Some(part)
        })
    }

    /// Calls `piece(text, start, end)` for every match, in order, until it returns false. With `keep_gaps`, text between matches is
    /// handed over as well (what `tokenizers` does in encoding); without, it is left out (what upstream's trainer
    /// does). The default pattern matches everything, so the two are the same for it.
    pub fn split<'t>(
        &self,
        text: &'t str,
        keep_gaps: bool,
        mut piece: impl FnMut(&'t [u8], usize, usize) -> bool,
    ) -> Result<(), String> {
        let bytes = text.as_bytes();
        match self {
            Splitter::Table(classes) => {
                let mut start = 0;
                while start < bytes.len() {
                    let end = piece_end(classes, bytes, start);
                    if !piece(bytes, start, end) {
                        break;
                    }
                    start = end;
                }
                Ok(())
            }
            Splitter::Regex(regex) => {
                let mut last = 0;
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| format!("the split pattern failed on a text: {error}"))?;
                    if keep_gaps && found.start() > last && !piece(bytes, last, found.start()) {
                        return Ok(());
                    }
                    if found.end() > found.start() && !piece(bytes, found.start(), found.end()) {
                        return Ok(());
                    }
                    last = found.end();
                }
                if keep_gaps && last < text.len() {
                    piece(bytes, last, text.len());
                }
                Ok(())
            }
        }
    }
}

/// The first seam at or behind `from`, or the end of the text.
fn seam(classes: &Classes, text: &str, from: usize) -> usize {
    let (bytes, mut at) = (text.as_bytes(), from.min(text.len()));
    while !text.is_char_boundary(at) {
        at += 1;
    }
    let mut before = OTHER;
    while at < bytes.len() {
        let (class, length) = class_at(classes, bytes, at);
        if before == LETTER && class != LETTER {
            return at;
        }
        before = class;
        at += length;
    }
    at
}

/// One class per code point, from the regex engine's own Unicode tables.
fn classes() -> &'static Classes {
    static TABLE: OnceLock<Box<Classes>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = vec![OTHER; 0x110000];
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE), (r"[\r\n]", NEWLINE)] {
            let hir = regex_syntax::parse(pattern).expect("a fixed class");
            let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(ranges)) = hir.kind() else {
                unreachable!("a class of code points");
            };
            for range in ranges.ranges() {
                table[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        table.into_boxed_slice().try_into().expect("the length is that of the type")
    })
}

/// Class and length in bytes of the character at `at`, which must be a character boundary.
#[inline(always)]
fn class_at(classes: &Classes, bytes: &[u8], at: usize) -> (u8, usize) {
    let first = bytes[at];
    if first < 0x80 {
        return (classes[first as usize], 1);
    }
    wide_class_at(classes, bytes, at)
}

fn wide_class_at(classes: &Classes, bytes: &[u8], at: usize) -> (u8, usize) {
    let tail = |k: usize| (bytes[at + k] & 0x3f) as usize;
    let first = bytes[at] as usize;
    let (code, length) = if first < 0xe0 {
        ((first & 0x1f) << 6 | tail(1), 2)
    } else if first < 0xf0 {
        ((first & 0x0f) << 12 | tail(1) << 6 | tail(2), 3)
    } else {
        ((first & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4)
    };
    (classes[code], length)
}

/// End of the run of `class` that starts at `at` (may be empty).
#[inline(always)]
fn run_end(classes: &Classes, bytes: &[u8], mut at: usize, class: u8) -> usize {
    while at < bytes.len() {
        let (found, length) = class_at(classes, bytes, at);
        if found != class {
            break;
        }
        at += length;
    }
    at
}

/// End of the run of letters that starts at `at`. Eight ASCII letters are seen at once: words end where a loop over
/// bytes would not expect it, and a branch that the processor guesses wrong costs more than the whole word.
#[inline(always)]
fn letters_end(classes: &Classes, bytes: &[u8], mut at: usize) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    while let Some(eight) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        let lower = (word | (0x20 * EACH)) & (0x7f * EACH);
        let from_a = lower + (0x80 - b'a' as u64) * EACH; // the top bit of each byte: whether it is `a` or above,
        let above_z = lower + (0x7f - b'z' as u64) * EACH; // and whether it is above `z`
        let others = !(from_a & !above_z & !word) & (0x80 * EACH);
        if others != 0 {
            at += others.trailing_zeros() as usize / 8;
            return if bytes[at] < 0x80 { at } else { run_end(classes, bytes, at, LETTER) };
        }
        at += 8;
    }
    run_end(classes, bytes, at, LETTER)
}

/// End of the piece that starts at `start`: the alternatives of `DEFAULT_PATTERN`, decided by the class of the first
/// character and, mostly, of the second.
#[inline]
fn piece_end(classes: &Classes, bytes: &[u8], start: usize) -> usize {
    let (first, length) = class_at(classes, bytes, start);
    let second = start + length;
    match first {
        LETTER => return letters_end(classes, bytes, second),
        NUMBER => {
            if second < bytes.len() {
                let (class, length) = class_at(classes, bytes, second);
                return if class == NUMBER { second + length } else { second };
            }
            return second;
        }
        NEWLINE => return space_end(classes, bytes, start),
        _ => {}
    }
    if bytes[start] == b'\'' {
        if let Some(end) = contraction_end(bytes, second) {
            return end;
        }
    }
    let next = if second < bytes.len() { class_at(classes, bytes, second).0 } else { NEWLINE };
    if next == LETTER {
        return letters_end(classes, bytes, second);
    }
    if first == OTHER || (bytes[start] == b' ' && next == OTHER) {
        let end = run_end(classes, bytes, second, OTHER);
        return run_end(classes, bytes, end, NEWLINE);
    }
    space_end(classes, bytes, start)
}

/// `'s 'd 'm 't 'll 've 're` in either case, and `'ſ`, which folds to `'s`. `at` is behind the apostrophe.
fn contraction_end(bytes: &[u8], at: usize) -> Option<usize> {
    let lower = |k: usize| bytes.get(at + k).map_or(0, |byte| byte | 0x20);
    match (lower(0), lower(1)) {
        (b's' | b'd' | b'm' | b't', _) => Some(at + 1),
        (b'l', b'l') | (b'v', b'e') | (b'r', b'e') => Some(at + 2),
        _ if bytes[at..].starts_with("ſ".as_bytes()) => Some(at + 2),
        _ => None,
    }
}

/// White space: up to its last line break; without one, all of it at the end of the text, else all but its last
/// character (which belongs to the next piece), unless that is all there is.
fn space_end(classes: &Classes, bytes: &[u8], start: usize) -> usize {
    let (mut at, mut last, mut behind_newline) = (start, start, None);
    while at < bytes.len() {
        let (class, length) = class_at(classes, bytes, at);
        if class < SPACE {
            break;
        }
        last = at;
        at += length;
        if class == NEWLINE {
            behind_newline = Some(at);
        }
    }
    match behind_newline {
        Some(end) => end,
        None if at == bytes.len() || last == start => at,
        None => last,
    }
}
