"""Writers of foreign graphs: each turns a `Graph` into what another library reads."""
