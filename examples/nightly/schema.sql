-- Days whose books are closed, and what was booked then.
CREATE TABLE day (
    day date PRIMARY KEY,
    closed boolean NOT NULL DEFAULT false,
    fence bigint NOT NULL DEFAULT 0 -- the highest fencing token that was here
);

CREATE TABLE sale (day date NOT NULL, account text NOT NULL, amount numeric NOT NULL);

CREATE TABLE booking (
    day date NOT NULL REFERENCES day,
    account text NOT NULL,
    amount numeric NOT NULL,
    token bigint NOT NULL -- of the tenure that booked it
);

-- Whoever comes with a smaller token than was here has lost the lock, whatever it believes.
CREATE FUNCTION refuse_stale_token() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.fence < OLD.fence THEN
        RAISE EXCEPTION 'token % is stale: % was here', NEW.fence, OLD.fence;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER fence BEFORE UPDATE ON day
    FOR EACH ROW EXECUTE FUNCTION refuse_stale_token();
