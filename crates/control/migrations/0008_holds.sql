-- Requests of an instance whose live slot rests are held at the edge, at most until then. Null while nothing rests.
alter table instances add column held_until timestamptz;
