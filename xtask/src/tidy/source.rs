//! Rust source split into code and comments, so that a rule about code does not trip over a word in a
//! comment, a string or this very sentence.

/// One line of a source file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The code; what string and character literals hold is left out, their quotes stay.
    pub(super) code: String,
    /// The text of comments, doc comments included, without the slashes that open them.
    pub(super) comment: String,
}

impl Line {
    /// What follows each `word` in the code, where it is not a part of a longer name.
    pub(super) fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        let named = |c: char| c.is_alphanumeric() || c == '_';
        self.code.match_indices(word).filter_map(move |(at, _)| {
            let (before, after) = (&self.code[..at], &self.code[at + word.len()..]);
            (!before.ends_with(named) && !after.starts_with(named)).then_some(after)
        })
    }
}

#[derive(Clone, Copy)]
enum State {
    Code,
    LineComment,
    /// Nested this deep.
    BlockComment(usize),
    /// An ordinary string.
    Text,
    /// A raw string closed by a quote and this many hashes.
    Raw(usize),
}

/// Splits a source file into its lines.
pub(super) fn lines(text: &str) -> Vec<Line> {
    let chars: Vec<char> = text.chars().collect();
    let mut lines = vec![Line::default()];
    let mut state = State::Code;
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        let next = chars.get(at + 1).copied();
        if c == '\n' {
            if matches!(state, State::LineComment) {
                state = State::Code;
            }
            lines.push(Line::default());
            at += 1;
            continue;
        }
        let last = lines.len() - 1;
        let line = &mut lines[last];
        let mut step = 1;
        match state {
            State::Code => match (c, next) {
                ('/', Some('/')) => (state, step) = (State::LineComment, 2),
                ('/', Some('*')) => (state, step) = (State::BlockComment(1), 2),
                ('"', _) => {
                    state = State::Text;
                    line.code.push('"');
                }
                ('r', Some('"' | '#')) if starts_literal(&line.code) => match raw_hashes(&chars[at + 1..]) {
                    Some(hashes) => {
                        (state, step) = (State::Raw(hashes), hashes + 2);
                        line.code.push('"');
                    }
                    None => line.code.push(c),
                },
                ('\'', _) => {
                    step = character(&chars[at..]);
                    line.code.push_str(if step == 1 { "'" } else { "''" });
                }
                _ => line.code.push(c),
            },
            State::LineComment => line.comment.push(c),
            State::BlockComment(depth) => match (c, next) {
                ('/', Some('*')) => (state, step) = (State::BlockComment(depth + 1), 2),
                ('*', Some('/')) if depth == 1 => (state, step) = (State::Code, 2),
                ('*', Some('/')) => (state, step) = (State::BlockComment(depth - 1), 2),
                _ => line.comment.push(c),
            },
            State::Text => match c {
                // The escaped character, unless it ends the line: that newline has to be counted.
                '\\' => step = if next == Some('\n') { 1 } else { 2 },
                '"' => {
                    state = State::Code;
                    line.code.push('"');
                }
                _ => {}
            },
            State::Raw(hashes) => {
                if c == '"' && chars[at + 1..].iter().take_while(|&&h| h == '#').count() >= hashes {
                    (state, step) = (State::Code, hashes + 1);
                    line.code.push('"');
                }
            }
        }
        at += step;
    }
    lines
}

/// Whether an `r` after `code` may open a raw string: alone, or after the `b` or `c` of a byte or C string.
fn starts_literal(code: &str) -> bool {
    let head = code.strip_suffix(['b', 'c']).unwrap_or(code);
    !head.ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// How many hashes stand before the quote; `None` when what follows is a raw identifier.
fn raw_hashes(rest: &[char]) -> Option<usize> {
    let hashes = rest.iter().take_while(|&&c| c == '#').count();
    (rest.get(hashes) == Some(&'"')).then_some(hashes)
}

/// How many characters a literal such as `'a'` or `'\n'` takes; one when the quote opens a lifetime.
fn character(rest: &[char]) -> usize {
    match rest {
        // The character after the backslash may itself be a quote.
        ['\'', '\\', _, tail @ ..] => tail.iter().position(|&c| c == '\'').map_or(1, |i| i + 4),
        ['\'', _, '\'', ..] => 3,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Vec<String> {
        lines(text).into_iter().map(|l| l.code.trim_end().to_owned()).collect()
    }

    #[test]
    fn comments_leave_the_code() {
        let split = lines("let a = 1; // unsafe one\n/* two /* deep */ still */ let b;\n/// three\n");
        assert_eq!(split[0].code.trim_end(), "let a = 1;");
        assert_eq!(split[0].comment, " unsafe one");
        assert_eq!(split[1].code.trim(), "let b;");
        assert_eq!(split[1].comment, " two  deep  still ");
        assert_eq!((split[2].code.as_str(), split[2].comment.as_str()), ("", "/ three"));
    }

    #[test]
    fn literals_are_emptied_and_lines_are_kept() {
        assert_eq!(code("f(\"a // \\\" unsafe\", x)"), ["f(\"\", x)"]);
        assert_eq!(code("f(r#\"a \" // unsafe\"#, b\"x\", br\"\\\", y)"), ["f(\"\", b\"\", b\"\", y)"]);
        assert_eq!(code("\"one\\\n two\" + c\n"), ["\"", "\" + c", ""]);
        assert_eq!(code("r\"one\ntwo\" + c"), ["\"", "\" + c"]);
    }

    #[test]
    fn characters_and_lifetimes_are_told_apart() {
        assert_eq!(
            code("if c == '\"' || c == '\\'' || c == '\\u{1F600}' { d }"),
            ["if c == '' || c == '' || c == '' { d }"]
        );
        assert_eq!(
            code("fn f<'a>(x: &'a str) -> &'a str { x } // c"),
            ["fn f<'a>(x: &'a str) -> &'a str { x }"]
        );
        assert_eq!(code("let r#type = br; let bar = r;"), ["let r#type = br; let bar = r;"]);
    }

    #[test]
    fn words_are_whole() {
        let line = &lines("unsafe_op(); unsafe { x } not_unsafe")[0];
        assert_eq!(line.words("unsafe").collect::<Vec<_>>(), [" { x } not_unsafe"]);
        assert_eq!(lines("deny(unsafe_code)")[0].words("unsafe").count(), 0);
    }
}
