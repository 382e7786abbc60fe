-- The last number that was handed out.
CREATE TABLE counter (
    last bigint NOT NULL,
    fence bigint NOT NULL DEFAULT 0 -- the highest fencing token that was here
);
INSERT INTO counter (last) VALUES (0);

-- Whoever comes with a smaller token than was here has lost the lock, whatever it believes.
CREATE FUNCTION refuse_stale_token() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.fence < OLD.fence THEN
        RAISE EXCEPTION 'token % is stale: % was here', NEW.fence, OLD.fence;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER fence BEFORE UPDATE ON counter
    FOR EACH ROW EXECUTE FUNCTION refuse_stale_token();
