//! Room comm.
