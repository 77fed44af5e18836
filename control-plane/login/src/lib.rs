//! Who is calling: bearer API tokens on the HTTP faces.
