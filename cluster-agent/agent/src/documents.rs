//! From the inbox's bytes to documents, each parsed once.

use roadstead_contract::{
    documents::{Kind, Name, parse_value},
    fleet::Digest,
};
use roadstead_inbox::Document;
use roadstead_plan::{Content, Item};
use std::collections::HashMap;

/// A document as it was read.
#[derive(Debug)]
struct Read {
    digest: Digest,
    item: Item,
}

/// What was read before: an unchanged document is not parsed again.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    read: HashMap<String, Read>,
}

impl Reader {
    /// The documents as the plan takes them; those that are gone are forgotten.
    pub(crate) fn items(&mut self, documents: Vec<Document>) -> Vec<&Item> {
        let mut before = std::mem::take(&mut self.read);
        for document in documents {
            let known = before.remove(&document.uid).filter(|known| {
                known.digest == document.digest && known.item.generation == document.generation
            });
            let uid = document.uid.clone();
            let read = known.unwrap_or_else(|| Read {
                digest: document.digest,
                item: item(document),
            });
            self.read.insert(uid, read);
        }
        self.all()
    }

    /// What [`Self::items`] gave last.
    pub(crate) fn all(&self) -> Vec<&Item> {
        self.read.values().map(|read| &read.item).collect()
    }
}

fn item(document: Document) -> Item {
    let content = match content(&document) {
        Ok(parsed) => Content::Document(Box::new(parsed)),
        Err(reason) => Content::Unreadable(reason),
    };
    Item {
        uid: document.uid,
        generation: document.generation,
        content,
    }
}

fn content(document: &Document) -> Result<roadstead_contract::documents::Document, String> {
    let value = serde_json::from_slice(&document.json).map_err(|error| format!("expected JSON: {error}"))?;
    let project: Name = document
        .project
        .parse()
        .map_err(|error| format!("metadata.project: {error}"))?;
    let parsed = parse_value(&document.name, &value, &project).map_err(|problems| {
        let each = problems
            .iter()
            .map(|problem| format!("{}: {}", problem.path, problem.message()));
        each.collect::<Vec<_>>().join("; ")
    })?;
    // What the hub says of a document and what it says itself must be the same thing: references go by name.
    let key = parsed.key();
    let own = (key.kind, key.project.as_ref(), key.name.as_str());
    let said = (
        Kind::parse(&document.kind),
        Some(&project),
        document.name.as_str(),
    );
    if (Some(own.0), own.1, own.2) != said {
        return Err(format!(
            "expected the {} {}/{}, as the hub names it, found the {} {}/{}",
            document.kind,
            document.project,
            document.name,
            key.kind,
            key.project.as_ref().map_or("", Name::as_str),
            key.name
        ));
    }
    Ok(parsed.document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{document, model};
    use serde_json::json;

    fn received(uid: &str, generation: u64, name: &str, json: &serde_json::Value) -> Document {
        let json = serde_json::to_vec(json).unwrap();
        Document {
            uid: uid.to_owned(),
            generation,
            digest: roadstead_contract::fleet::document_digest(&json),
            kind: "Model".to_owned(),
            project: "support".to_owned(),
            name: name.to_owned(),
            json,
        }
    }

    fn reason(item: &Item) -> &str {
        match &item.content {
            Content::Document(_) => "",
            Content::Unreadable(reason) => reason,
        }
    }

    #[test]
    fn documents_are_read_once_and_forgotten_when_gone() {
        let mut reader = Reader::default();
        let first = received("m1", 1, "m", &document("Model", "m", &model()));
        assert_eq!(reason(reader.items(vec![first.clone()])[0]), "");
        // The bytes are not looked at again while uid, generation and digest are the same.
        let mut same = first.clone();
        same.json.clear();
        assert_eq!(reason(reader.items(vec![same.clone()])[0]), "");
        same.generation = 2;
        assert!(reason(reader.items(vec![same])[0]).contains("JSON"));
        assert!(reader.items(Vec::new()).is_empty());
    }

    #[test]
    fn s45_a_document_under_another_name_is_refused() {
        let mut reader = Reader::default();
        let other = received("m1", 1, "other", &document("Model", "m", &model()));
        let items = reader.items(vec![other]);
        assert!(
            reason(items[0]).contains("Model support/other"),
            "{}",
            reason(items[0])
        );
    }

    #[test]
    fn what_does_not_hold_names_its_place() {
        let mut reader = Reader::default();
        let mut spec = model();
        spec["modle"] = json!("x");
        let items = reader.items(vec![received("m1", 1, "m", &document("Model", "m", &spec))]);
        assert!(reason(items[0]).contains("spec.modle"), "{}", reason(items[0]));
    }
}
