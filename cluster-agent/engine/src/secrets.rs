//! The secret values that a revision needs, as the runtime handed them over.
//!
//! They live here and in the HTTP clients and tool servers that use them; `Debug` shows names only (S66).

use roadstead_contract::{control::SecretText, documents::SecretRef};
use std::{collections::BTreeMap, fmt};

/// Values by environment variable name.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<String, SecretText>);

/// A secret that a document refers to and that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error(
        "expected a value for the environment variable {0}, found none: set it where the cluster agent runs"
    )]
    Missing(String),
    #[error(
        "expected a key of the form {{env: NAME}}, found the secret binding {0}: bindings are not built yet"
    )]
    Binding(String),
}

impl Secrets {
    #[must_use]
    pub fn new(values: BTreeMap<String, SecretText>) -> Self {
        Self(values)
    }

    /// The value that `reference` names.
    ///
    /// # Errors
    /// The variable has no value, or the reference is a secret binding.
    pub fn resolve(&self, reference: &SecretRef) -> Result<&SecretText, SecretError> {
        match reference {
            SecretRef::Env(key) => {
                let value = self.0.get(&key.env);
                value.ok_or_else(|| SecretError::Missing(key.env.clone()))
            }
            SecretRef::Binding(binding) => Err(SecretError::Binding(binding.secret.to_string())),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
