//! The wire of Gitstafette: code generated from `proto/` and conversions to and from the core's types.
//!
//! What a message means is decided in [`convert`] alone.

pub mod convert;

/// `gitstafette.v1`: subscriptions. Documented in `proto/gitstafette/v1/gitstafette.proto`.
#[expect(
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("gitstafette.v1");
}

/// `info`: what an instance is. Documented in `proto/info/gitstafette_info.proto`.
#[expect(unused_qualifications, clippy::allow_attributes_without_reason, reason = "generated code")]
pub mod info {
    tonic::include_proto!("info");
}

/// The descriptors of all files, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("descriptors");

/// The largest webhook body that the wire carries, in bytes: what a server may set as its limit at most.
///
/// GitHub's own limit is 25 MB (GitHub Docs, "Webhook events and payloads"); the rest is room for other senders.
pub const MAX_BODY_BYTES: u64 = 64 << 20;

/// The largest message that the wire carries, in bytes: a body of [`MAX_BODY_BYTES`] and room for its headers. tonic's own
/// default, 4 MiB, would refuse webhooks that GitHub sends.
pub const MAX_MESSAGE_BYTES: usize = (MAX_BODY_BYTES + (1 << 20)) as usize;

/// The largest message that a client sends to a server, in bytes: a subscription with all events that it may have deferred, or
/// acknowledgements. A client sends more acknowledgements in several messages.
pub const MAX_REQUEST_BYTES: usize = 640 << 10;
