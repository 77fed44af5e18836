//! Committed lists are what they would be made as today.

use roadstead_house::statements::{LIST, render, sections, tests};
use roadstead_house::{root, text};

#[test]
fn s92_the_list_of_security_statements_is_up_to_date() {
    let made = render(&sections().unwrap(), &tests().unwrap());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(root().join(LIST), &made).unwrap();
    }
    let committed = text(LIST).unwrap().unwrap();
    assert!(
        committed == made,
        "{LIST} is not what the tests' names say: run `make generate`"
    );
}

#[test]
fn no_test_carries_an_unknown_id() {
    let known: Vec<_> = sections()
        .unwrap()
        .into_iter()
        .flat_map(|s| s.statements)
        .map(|s| s.id)
        .collect();
    let strange: Vec<_> = tests()
        .unwrap()
        .into_iter()
        .filter(|(id, _)| !known.contains(id))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
}
