//! Diligence.
