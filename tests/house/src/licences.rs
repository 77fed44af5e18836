//! SPDX licence expressions, as far as crates use them: identifiers, `WITH`, `AND`, `OR`, parentheses, and the old
//! slash for `OR` (SPDX specification 2.3, annex D).

/// Whether `expression` can be fulfilled with the `allowed` identifiers alone.
///
/// # Errors
/// The expression cannot be read; the text says where.
pub fn permits(expression: &str, allowed: &[&str]) -> Result<bool, String> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut parser = Parser {
        tokens: spaced.split_whitespace().collect(),
        at: 0,
        allowed,
    };
    let value = parser.or()?;
    match parser.tokens.get(parser.at) {
        None => Ok(value),
        Some(token) => Err(format!("`{token}` is not expected in `{expression}`")),
    }
}

struct Parser<'a> {
    tokens: Vec<&'a str>,
    at: usize,
    allowed: &'a [&'a str],
}

impl Parser<'_> {
    fn next_is(&mut self, word: &str) -> bool {
        let found = self.tokens.get(self.at) == Some(&word);
        self.at += usize::from(found);
        found
    }

    fn or(&mut self) -> Result<bool, String> {
        let mut value = self.and()?;
        while self.next_is("OR") {
            value |= self.and()?;
        }
        Ok(value)
    }

    fn and(&mut self) -> Result<bool, String> {
        let mut value = self.one()?;
        while self.next_is("AND") {
            value &= self.one()?;
        }
        Ok(value)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.next_is("(") {
            let value = self.or()?;
            return if self.next_is(")") {
                Ok(value)
            } else {
                Err("a parenthesis is not closed".to_owned())
            };
        }
        let id = *self
            .tokens
            .get(self.at)
            .ok_or("an identifier is missing at the end")?;
        self.at += 1;
        if self.next_is("WITH") {
            // An exception only widens what the licence permits.
            self.at += 1;
        }
        Ok(self.allowed.contains(&id))
    }
}

#[cfg(test)]
mod unit {
    use super::permits;

    #[test]
    fn expressions_are_understood() {
        let allowed = ["MIT", "Apache-2.0", "ISC"];
        for yes in [
            "MIT",
            "MIT/GPL-3.0",
            "GPL-3.0 OR Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
            "(MIT OR X) AND ISC",
        ] {
            assert_eq!(permits(yes, &allowed), Ok(true), "{yes}");
        }
        for no in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR X) AND Y", "AGPL-3.0-only"] {
            assert_eq!(permits(no, &allowed), Ok(false), "{no}");
        }
        for bad in ["", "MIT OR", "(MIT", "MIT Apache-2.0"] {
            assert!(permits(bad, &allowed).is_err(), "{bad}");
        }
    }
}
