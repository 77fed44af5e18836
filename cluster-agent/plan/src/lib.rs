//! Pure: from documents to engines.
