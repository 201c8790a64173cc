//! Tag policies.
