//! Slurm's lists: `gpu[001-003,7],login2` for names, `2(x3),1` for tasks by node.

/// Names that a list may stand for: more are a slip, and would fill the memory.
const MOST: usize = 1 << 16;

/// The names that a list stands for, in its order. The error says what is wrong, and where (from 0).
pub fn expand(list: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    let mut at = 0;
    while at < list.len() {
        let end = item_end(list, at)?;
        if end == at {
            return Err(format!("there is no name at {at}"));
        }
        item(&list[at..end], at, &mut names)?;
        at = end + 1;
        if at == list.len() {
            return Err(format!("there is no name at {at}"));
        }
    }
    Ok(names)
}

/// Where the item that begins at `at` ends: at a comma outside of brackets.
fn item_end(list: &str, at: usize) -> Result<usize, String> {
    let mut open = None;
    for (i, c) in list[at..].char_indices().map(|(i, c)| (at + i, c)) {
        match (c, open) {
            ('[', None) => open = Some(i),
            ('[', Some(_)) => return Err(format!("a bracket opens within brackets at {i}")),
            (']', None) => return Err(format!("a bracket closes that is not open at {i}")),
            (']', Some(_)) => open = None,
            (',', None) => return Ok(i),
            _ => {}
        }
    }
    match open {
        Some(i) => Err(format!("the bracket at {i} does not close")),
        None => Ok(list.len()),
    }
}

/// The names of one item, which may have several brackets: every combination, the last bracket fastest.
fn item(text: &str, at: usize, names: &mut Vec<String>) -> Result<(), String> {
    let mut heads = vec![String::new()];
    let mut rest = text;
    let mut offset = at;
    while let Some((before, after)) = rest.split_once('[') {
        let (inside, after) =
            after.split_once(']').ok_or(format!("the bracket at {offset} does not close"))?;
        let numbers = ranges(inside, offset + before.len() + 1)?;
        if heads.len().saturating_mul(numbers.len()).saturating_add(names.len()) > MOST {
            return Err(format!("it stands for more than {MOST} names"));
        }
        let join = |h: &String| numbers.iter().map(move |n| format!("{h}{before}{n}")).collect::<Vec<_>>();
        heads = heads.iter().flat_map(join).collect();
        offset += before.len() + inside.len() + 2;
        rest = after;
    }
    if names.len() + heads.len() > MOST {
        return Err(format!("it stands for more than {MOST} names"));
    }
    names.extend(heads.into_iter().map(|h| h + rest));
    Ok(())
}

/// The numbers of a bracket, with their leading zeros.
fn ranges(inside: &str, at: usize) -> Result<Vec<String>, String> {
    let mut numbers = Vec::new();
    let mut offset = at;
    for part in inside.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let parsed = (first.parse::<u64>(), last.parse::<u64>());
        let (Ok(a), Ok(b), true) = (parsed.0, parsed.1, digits(first) && digits(last)) else {
            return Err(format!("{part:?} at {offset} is neither a number nor a range of numbers"));
        };
        if b < a {
            return Err(format!("the range {part} at {offset} runs backwards"));
        }
        if b - a >= MOST as u64 || numbers.len() + (b - a) as usize >= MOST {
            return Err(format!("it stands for more than {MOST} names"));
        }
        let width = first.len();
        numbers.extend((a..=b).map(|n| format!("{n:0width$}")));
        offset += part.len() + 1;
    }
    Ok(numbers)
}

/// A short list that stands for `names`, in their order: neighbours that differ in their last number alone
/// share a bracket.
pub fn compress(names: &[String]) -> String {
    let mut items: Vec<(&str, Vec<(&str, &str)>)> = Vec::new();
    for name in names {
        let head = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &name[head.len()..];
        let next = |last: &str| {
            let n = last.parse::<u64>().ok()?.checked_add(1)?;
            Some(format!("{n:0width$}", width = last.len()))
        };
        match items.last_mut() {
            Some((h, runs)) if *h == head && !digits.is_empty() && runs.iter().all(|r| !r.0.is_empty()) => {
                match runs.last_mut() {
                    // 9 to 10 keeps its width only without zeros in front, as Slurm writes it.
                    Some((first, last))
                        if next(last).as_deref() == Some(digits)
                            && (digits.len() == first.len() || !first.starts_with('0')) =>
                    {
                        *last = digits;
                    }
                    _ => runs.push((digits, digits)),
                }
            }
            _ => items.push((head, vec![(digits, digits)])),
        }
    }
    let text = |(head, runs): (&str, Vec<(&str, &str)>)| {
        let one = |(a, b): &(&str, &str)| if a == b { (*a).to_owned() } else { format!("{a}-{b}") };
        match &runs[..] {
            [(a, b)] if a == b => format!("{head}{a}"),
            _ => format!("{head}[{}]", runs.iter().map(one).collect::<Vec<_>>().join(",")),
        }
    };
    items.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// Tasks of each node: `2(x3),1` is 2, 2, 2, 1.
pub fn tasks_per_node(text: &str) -> Result<Vec<u32>, String> {
    let mut tasks = Vec::new();
    for part in text.split(',') {
        let wrong = || format!("{part:?} is not of the form 2 or 2(x3)");
        let (count, times) = match part.split_once("(x") {
            None => (part, 1),
            Some((count, rest)) => {
                let times = rest.strip_suffix(')').and_then(|t| t.parse::<usize>().ok());
                (count, times.ok_or_else(wrong)?)
            }
        };
        let count = count.parse::<u32>().map_err(|_| wrong())?;
        if tasks.len().saturating_add(times) > MOST {
            return Err(format!("it stands for more than {MOST} nodes"));
        }
        tasks.extend(std::iter::repeat_n(count, times));
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_are_expanded_as_slurm_means_them() {
        let e = |list| expand(list).unwrap();
        assert_eq!(e("gpu[001-003,7],login2"), ["gpu001", "gpu002", "gpu003", "gpu7", "login2"]);
        assert_eq!(e("r[1-2]n[01-02]"), ["r1n01", "r1n02", "r2n01", "r2n02"]);
        assert_eq!(e("n[8-11]-ib"), ["n8-ib", "n9-ib", "n10-ib", "n11-ib"]);
        assert_eq!(e("a,b-1"), ["a", "b-1"]);
        assert_eq!(e(""), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_place() {
        for (list, say) in [
            ("a,", "no name at 2"),
            (",a", "no name at 0"),
            ("a[1-2", "bracket at 1"),
            ("a1]", "not open at 2"),
            ("a[1[2]]", "within brackets at 3"),
            ("a[2-1]", "at 2 runs backwards"),
            ("a[1,x]", "\"x\" at 4"),
            ("a[]", "\"\" at 2"),
            ("a[1-+2]", "neither"),
            ("a[0-99999999]", "more than 65536"),
            ("a[0-999]b[0-999]", "more than 65536"),
            ("a[0-99999999999999999999]", "neither"),
        ] {
            let e = expand(list).unwrap_err();
            assert!(e.contains(say), "{list}: {e}");
        }
    }

    #[test]
    fn tasks_by_node() {
        assert_eq!(tasks_per_node("2(x3),1"), Ok(vec![2, 2, 2, 1]));
        assert_eq!(tasks_per_node("4"), Ok(vec![4]));
        for wrong in ["", "x", "2(x", "2(x)", "2x3", "1(x99999999999)"] {
            assert!(tasks_per_node(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn neighbours_share_a_bracket() {
        let c = |names: &[&str]| compress(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(c(&["g8", "g9", "g10", "g12", "login"]), "g[8-10,12],login");
        assert_eq!(c(&["g08", "g09", "g10"]), "g[08-10]");
        assert_eq!(c(&["g099", "g100", "g1"]), "g[099-100,1]");
        assert_eq!(c(&[]), "");
    }

    proptest! {
        #[test]
        fn what_is_compressed_expands_to_the_same(
            names in prop::collection::vec("[a-c]{1,2}(-[a-b])?(0{0,2}[0-9]{1,3})?", 0..40),
            start in 0u32..200, count in 0u32..30, width in 1usize..5,
        ) {
            let run = (start..start + count).map(|n| format!("node{n:0width$}"));
            let names: Vec<String> = names.into_iter().chain(run).collect();
            prop_assert_eq!(expand(&compress(&names)).unwrap(), names);
        }

        #[test]
        fn no_text_breaks_it(text in "[a-b0-9,\\[\\]-]{0,24}") {
            if let Ok(names) = expand(&text) {
                prop_assert!(names.len() <= MOST);
            }
        }
    }
}
