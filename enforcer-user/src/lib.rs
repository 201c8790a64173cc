//! The enforcer agent as a library.
