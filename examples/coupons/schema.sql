-- Who gets a coupon, who has one, and who is at work on it.
CREATE TABLE customer (name text PRIMARY KEY);

CREATE TABLE run (
    campaign text PRIMARY KEY,
    fence bigint NOT NULL DEFAULT 0, -- the highest fencing token that was here
    owner uuid, -- a secret of the process that is at work; none: nobody is
    beat timestamptz -- its last sign of life
);

CREATE TABLE coupon (
    campaign text NOT NULL REFERENCES run,
    customer text NOT NULL REFERENCES customer,
    token bigint NOT NULL, -- of the tenure that issued it
    PRIMARY KEY (campaign, customer)
);

-- Whoever comes with a smaller token than was here has lost the lock, whatever it believes.
CREATE FUNCTION refuse_stale_token() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.fence < OLD.fence THEN
        RAISE EXCEPTION 'token % is stale: % was here', NEW.fence, OLD.fence;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER fence BEFORE UPDATE ON run
    FOR EACH ROW EXECUTE FUNCTION refuse_stale_token();

-- The programs may call what follows and touch nothing else: they own no table and have no right to one.

-- Makes me the owner, if nobody is, or if the owner has been silent for so long.
CREATE FUNCTION take_run(of text, my_token bigint, me uuid, silence interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    UPDATE run SET fence = my_token, owner = me, beat = clock_timestamp()
    WHERE campaign = of AND (owner IS NULL OR beat < clock_timestamp() - silence);
    RETURN FOUND;
END $$;

-- A sign of life; false if I am the owner no longer.
CREATE FUNCTION beat(of text, me uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    UPDATE run SET beat = clock_timestamp() WHERE campaign = of AND owner = me;
    RETURN FOUND;
END $$;

-- The next customer without a coupon.
CREATE FUNCTION next_customer(of text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public AS $$
    SELECT min(name) FROM customer
    WHERE NOT EXISTS (SELECT FROM coupon WHERE campaign = of AND customer = name)
$$;

-- Notes that this customer has one; false if I am the owner no longer.
CREATE FUNCTION record_coupon(of text, my_token bigint, me uuid, whose text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    UPDATE run SET fence = my_token, beat = clock_timestamp() WHERE campaign = of AND owner = me;
    IF FOUND THEN
        INSERT INTO coupon (campaign, customer, token) VALUES (of, whose, my_token);
        RETURN true;
    END IF;
    RETURN false;
END $$;

-- Lets somebody else go on at once; false if I am not the owner.
CREATE FUNCTION let_go(of text, me uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    UPDATE run SET owner = NULL WHERE campaign = of AND owner = me;
    RETURN FOUND;
END $$;
