//! The small part of AMPS' filter language that the sandbox understands: comparisons of JSON
//! fields with literals, joined by `AND`, as in `/id = 1 AND /state != 'done'`, and `1=1`.

use serde_json::Value;

/// A filter that was understood.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Filter {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq)]
struct Term {
    left: Operand,
    comparison: Comparison,
    right: Operand,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Field(String),
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Filter {
    /// Reads a filter. `None`: it is malformed, or more than the sandbox understands.
    pub(crate) fn parse(text: &str) -> Option<Filter> {
        let mut rest = text.trim_start();
        let mut terms = Vec::new();
        loop {
            let left = operand(&mut rest)?;
            let comparison = comparison(&mut rest)?;
            let right = operand(&mut rest)?;
            terms.push(Term {
                left,
                comparison,
                right,
            });
            if rest.is_empty() {
                return Some(Filter { terms });
            }
            let word = rest
                .get(..3)
                .filter(|word| word.eq_ignore_ascii_case("and"))?;
            rest = rest[word.len()..].trim_start();
        }
    }

    /// Whether `body` is JSON that the filter lets through.
    pub(crate) fn matches(&self, body: &[u8]) -> bool {
        let Ok(document) = serde_json::from_slice(body) else {
            return false;
        };
        self.terms.iter().all(|term| term.holds(&document))
    }
}

impl Term {
    fn holds(&self, document: &Value) -> bool {
        let (Some(left), Some(right)) = (self.left.value(document), self.right.value(document))
        else {
            return self.comparison == Comparison::NotEqual;
        };
        let order = match (left, right) {
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            _ => match (left.as_f64(), right.as_f64()) {
                (Some(a), Some(b)) => a.partial_cmp(&b),
                _ => (left == right).then_some(std::cmp::Ordering::Equal),
            },
        };
        match self.comparison {
            Comparison::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
            Comparison::NotEqual => order.is_none_or(std::cmp::Ordering::is_ne),
            Comparison::Less => order.is_some_and(std::cmp::Ordering::is_lt),
            Comparison::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
            Comparison::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
            Comparison::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
        }
    }
}

impl Operand {
    fn value<'a>(&'a self, document: &'a Value) -> Option<&'a Value> {
        match self {
            Operand::Field(path) => document.pointer(path),
            Operand::Literal(value) => Some(value),
        }
    }
}

fn operand(rest: &mut &str) -> Option<Operand> {
    let first = rest.chars().next()?;
    let (operand, length) = match first {
        '\'' | '"' => {
            let end = rest[1..].find(first)?;
            (Operand::Literal(Value::from(&rest[1..=end])), end + 2)
        }
        '/' => {
            let ends = |c: char| c.is_whitespace() || "=!<>".contains(c);
            let end = rest.find(ends).unwrap_or(rest.len());
            (Operand::Field(rest[..end].to_owned()), end)
        }
        _ => {
            let ends = |c: char| c.is_whitespace() || "=!<>".contains(c);
            let end = rest.find(ends).unwrap_or(rest.len());
            let literal = serde_json::from_str(&rest[..end]).ok()?;
            (Operand::Literal(literal), end)
        }
    };
    *rest = rest[length..].trim_start();
    Some(operand)
}

fn comparison(rest: &mut &str) -> Option<Comparison> {
    let spellings = [
        ("==", Comparison::Equal),
        ("!=", Comparison::NotEqual),
        ("<>", Comparison::NotEqual),
        ("<=", Comparison::LessOrEqual),
        (">=", Comparison::GreaterOrEqual),
        ("=", Comparison::Equal),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ];
    let (spelling, comparison) = spellings.into_iter().find(|(s, _)| rest.starts_with(s))?;
    *rest = rest[spelling.len()..].trim_start();
    Some(comparison)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_understood() {
        let body = br#"{"id":1,"name":"ann","deep":{"n":2.5}}"#;
        for (text, expected) in [
            ("/id = 1", true),
            ("/id=2", false),
            ("/id == 1 AND /name = 'ann'", true),
            ("/id = 1 and /name = \"bob\"", false),
            ("/deep/n >= 2.5", true),
            ("/deep/n < 2.5", false),
            ("/id <> 1", false),
            ("/nothing = 1", false),
            ("/nothing != 1", true),
            ("1=1", true),
            ("1 = 2", false),
        ] {
            assert_eq!(
                Filter::parse(text).map(|f| f.matches(body)),
                Some(expected),
                "{text}"
            );
        }
        assert_eq!(
            Filter::parse("/id = 1").map(|f| f.matches(b"no json")),
            Some(false)
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "",
            "/id",
            "/id =",
            "= 1",
            "/id = 'x",
            "/id = 1 OR /id = 2",
            "/id = x",
        ] {
            assert_eq!(Filter::parse(text), None, "{text}");
        }
    }
}
