//! The server of maps for other programs.
//!
//! A part of the table of options, see [`options`](super). Pure values: nothing is read, nothing blocks.

use super::{DAY, OptionDef, SECOND};
use crate::config::duration::TimeUnit;
use crate::config::value::Access;

pub(super) const MAPD: &[OptionDef] = &[
    OptionDef::new(
        "mapd.listen",
        "unix:/var/run/sendmail/maps",
        Access::Several {
            form: "unix:PATH or inet:PORT@ADDRESS",
            separator: Some(','),
            clear: |c| c.mapd.listen.clear(),
            add: |c, text| {
                let address = c.place_listener(text)?;
                c.mapd.listen.push(address);
                Ok(())
            },
            show: |c| c.mapd.listen.clone(),
        },
        "Where mapd listens; an ADDRESS is one of this host's loopback.",
    )
    .sandbox("unix:run/maps"),
    OptionDef::new(
        "mapd.max_connections",
        "200",
        Access::Count {
            field: |c| &mut c.mapd.max_connections,
            min: 1,
            max: 10_000,
        },
        "Clients that mapd serves at once; further ones are turned away.",
    ),
    OptionDef::new(
        "mapd.idle_timeout",
        "10m",
        Access::Time {
            field: |c| &mut c.mapd.idle_timeout,
            unit: TimeUnit::Minutes,
            min: SECOND,
            max: DAY,
        },
        "How long a client of mapd may be silent between two requests.",
    ),
];
