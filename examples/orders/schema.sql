-- Carts, and what was ordered of them.
CREATE TABLE cart (
    id bigint PRIMARY KEY,
    order_id bigint, -- none yet
    fence bigint NOT NULL DEFAULT 0 -- the highest fencing token that was here
);

CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cart bigint NOT NULL REFERENCES cart,
    token bigint NOT NULL -- of the tenure that ordered it
);

-- Whoever comes with a smaller token than was here has lost the lock, whatever it believes.
CREATE FUNCTION refuse_stale_token() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.fence < OLD.fence THEN
        RAISE EXCEPTION 'token % is stale: % was here', NEW.fence, OLD.fence;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER fence BEFORE UPDATE ON cart
    FOR EACH ROW EXECUTE FUNCTION refuse_stale_token();
