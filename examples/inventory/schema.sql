-- What is in stock, and what was sold of it.
CREATE TABLE stock (
    item text PRIMARY KEY,
    pieces bigint NOT NULL CHECK (pieces >= 0),
    fence bigint NOT NULL DEFAULT 0 -- the highest fencing token that was here
);

CREATE TABLE sale (
    item text NOT NULL REFERENCES stock,
    token bigint NOT NULL -- of the tenure that sold it
);

-- Whoever comes with a smaller token than was here has lost the lock, whatever it believes.
CREATE FUNCTION refuse_stale_token() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.fence < OLD.fence THEN
        RAISE EXCEPTION 'token % is stale: % was here', NEW.fence, OLD.fence;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER fence BEFORE UPDATE ON stock
    FOR EACH ROW EXECUTE FUNCTION refuse_stale_token();
