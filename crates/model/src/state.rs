//! What all state machines share: the error of a transition that the rules do not have, and text forms for the store and the API.

use thiserror::Error;

/// A state machine was asked for a step that its rules do not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{machine} cannot go from {from} on {event}")]
pub struct IllegalTransition {
    pub machine: &'static str,
    pub from: &'static str,
    pub event: String,
}

/// A word that is not one of the words of an enumeration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{value}` is not a {what}; use one of: {allowed}")]
pub struct UnknownWord {
    pub what: &'static str,
    pub value: String,
    pub allowed: String,
}

/// Lets the store read a type from a text column, by its `FromStr`: `select status as "status: DeploymentStatus"`. It is bound as text (`as_str()`).
macro_rules! stored_as_text {
    ($name:ident) => {
        #[cfg(feature = "store")]
        impl sqlx::Type<sqlx::Postgres> for $name {
            fn type_info() -> sqlx::postgres::PgTypeInfo {
                <str as sqlx::Type<sqlx::Postgres>>::type_info()
            }

            fn compatible(info: &sqlx::postgres::PgTypeInfo) -> bool {
                <str as sqlx::Type<sqlx::Postgres>>::compatible(info)
            }
        }

        #[cfg(feature = "store")]
        impl<'row> sqlx::Decode<'row, sqlx::Postgres> for $name {
            fn decode(value: sqlx::postgres::PgValueRef<'row>) -> Result<Self, sqlx::error::BoxDynError> {
                Ok(<&str as sqlx::Decode<sqlx::Postgres>>::decode(value)?.parse()?)
            }
        }
    };
}

pub(crate) use stored_as_text;

/// Gives an enumeration its one text form: in the store, in the API and in logs.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant),*
        }

        impl $name {
            /// All values, in the order of their definition.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        // By hand, since utoipa's derive does not see a `rename` that comes out of a macro.
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                let words = utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::Type::String)
                    .enum_values(Some([$($word),*]));
                utoipa::openapi::Schema::from(words).into()
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::state::UnknownWord;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err($crate::state::UnknownWord {
                        what: $what,
                        value: text.to_owned(),
                        allowed: [$($word),*].join(", "),
                    }),
                }
            }
        }

        $crate::state::stored_as_text!($name);
    };
}

pub(crate) use words;
