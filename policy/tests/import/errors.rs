//! What cannot be read or said: file, line, object and field.
